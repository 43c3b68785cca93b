"""The published models at their full size on this machine: Base from a .pth to a picture, ITHQ's
compiled without its weights.

  pip install torch==2.13.0; pip download --no-deps open_clip_torch      (the second brings CLIP's
  vocabulary) python benchmarks/full_size.py --vocabulary=bpe_simple_vocab_16e6.txt.gz --work=DIR
  --out=results/full_size.json

`base` writes a synthetic checkpoint, with random weights, of the layout and the size of the
published text models of CUB-200 and MS-COCO (389 million parameters, "model" and "ema", CLIP's text
tower, the codec of 8192 codes, the remap file, the YAML), converts it and samples from it with the
commands that a user types. Each runs as a process of its own; its memory is the largest resident
set that the system saw, mapped files included. `ithq` lowers and compiles sampling and the training
step of the largest model (1.36 thousand million) from shapes alone, for the CPU, and compares XLA's
count of operations with one by hand.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE, ITHQ = 388_780_871, 1_359_274_624  # parameters of the denoisers, as published
LIMIT = 24.0  # GB that sampling may take
FEW, MORE = 2, 6  # calls; a call takes a part of what lies between
PROMPT = "a small yellow bird with grey wings"
YAML = """
model:
  target: image_synthesis.modeling.models.dalle.DALLE
  params:
    content_info: {key: image}
    condition_info: {key: text}
    content_codec_config:
      target: image_synthesis.modeling.codecs.image_codec.taming_gumbel_vqvae.TamingGumbelVQVAE
      params: {trainable: False, token_shape: [32, 32], num_tokens: 8192, quantize_number: 2887,
               mapping_path: ./help_folder/statistics/taming_vqvae_2887.pt}
    condition_codec_config:
      target: image_synthesis.modeling.codecs.text_codec.tokenize.Tokenize
      params: {context_length: 77, add_start_and_end: True, with_mask: True, pad_value: 0, clip_embedding: False}
    diffusion_config:
      target: image_synthesis.modeling.transformers.diffusion_transformer.DiffusionTransformer
      params:
        diffusion_step: 100
        alpha_init_type: alpha1
        auxiliary_loss_weight: 5.0e-4
        adaptive_auxiliary_loss: True
        mask_weight: [1, 1]
        learnable_cf: True
        transformer_config:
          target: image_synthesis.modeling.transformers.transformer_utils.Text2ImageTransformer
          params: {attn_type: selfcross, n_layer: 19, condition_seq_len: 77, content_seq_len: 1024, content_spatial_size: [32, 32],
                   n_embd: 1024, condition_dim: 512, n_head: 16, attn_pdrop: 0.0, resid_pdrop: 0.0, block_activate: GELU2,
                   timestep_type: adalayernorm, mlp_hidden_times: 4}
        condition_emb_config:
          target: image_synthesis.modeling.embeddings.clip_text_embedding.CLIPTextEmbedding
          params: {clip_name: ViT-B/32, num_embed: 49408, normalize: True, pick_last_embedding: False, embed_dim: 512}
        content_emb_config:
          target: image_synthesis.modeling.embeddings.dalle_mask_image_embedding.DalleMaskImageEmbedding
          params: {num_embed: 2887, spatial_size: !!python/tuple [32, 32], embed_dim: 1024, trainable: True, pos_emb_type: embedding}
"""  # noqa: E501


def write(folder: Path) -> None:
    """The files of a published model: model.pth, remap.pt and config.yaml."""
    import torch

    sys.path.insert(0, str(ROOT / "tests"))
    import official

    say("making random weights")
    network = official.Transformer(
        codes=2887,
        side=32,
        positions=(32, 32),
        d=1024,
        heads=16,
        layers=19,
        ratio=4,
        mlp="fc",
        condition="text",
        T=100,
        text_width=512,
    )
    assert sum(p.numel() for p in network.parameters()) == BASE
    codec = official.randomise(
        official.Codec(
            kind="gumbel",
            codes=8192,
            width=256,
            ch=128,
            mult=(1, 1, 2, 4),
            blocks=2,
            attention=(3,),
            z=256,
        ),
        scale=0.5,
    )
    with torch.no_grad():
        network.to_logits[1].weight.mul_(20)  # with PyTorch's own start all logits would be alike
    half = lambda name, x: (
        x.half() if re.search(r"(in_proj|out_proj|c_fc|c_proj|text_projection)", name) else x
    )
    clip = {name: half(name, x) for name, x in official.clip(512, 12, scale=0.03).items()}
    say("writing model.pth")
    null = torch.randn(77, 512, dtype=torch.float64) / 512**0.5
    torch.save(
        official.checkpoint(network, codec, T=100, codes=2887, clip=clip, null=null),
        folder / "model.pth",
    )
    remap = torch.zeros(8192, dtype=torch.int64)
    remap[torch.linspace(1, 8191, 2886).round().long()] = torch.arange(1, 2887)
    torch.save(remap, folder / "remap.pt")
    (folder / "config.yaml").write_text(YAML)


def base(work: Path, vocabulary: Path) -> dict:
    """Writing, converting and sampling, each as a process."""
    work.mkdir(parents=True, exist_ok=True)
    out = {"write": run([sys.executable, __file__, f"--write={work}"])}
    out["write"]["checkpoint_gb"] = (work / "model.pth").stat().st_size / 1e9
    shutil.rmtree(work / "run", ignore_errors=True)
    out["convert"] = run(
        product(
            "convert",
            work / "model.pth",
            f"--workdir={work / 'run'}",
            f"--yaml={work / 'config.yaml'}",
            f"--remap={work / 'remap.pt'}",
            f"--tokenizer={vocabulary}",
        )
    )
    (work / "model.pth").unlink()
    assert f"denoiser: {BASE:,} parameters, condition text" in out["convert"]["output"], out[
        "convert"
    ]["output"]
    assert "8192 codes, 2887 tokens" in out["convert"]["output"], out["convert"]["output"]
    out["workdir_gb"] = (
        sum(f.stat().st_size for f in (work / "run").rglob("*") if f.is_file()) / 1e9
    )
    shutil.rmtree(work / "xla", ignore_errors=True)
    out["sample"] = [sample(work, calls) for calls in (FEW, MORE) * 3]  # the first two compile
    for kind in ("seconds", "cpu_seconds"):
        pairs = zip(out["sample"][::2], out["sample"][1::2], strict=True)
        out[f"{kind}_per_call"] = [(more[kind] - few[kind]) / (MORE - FEW) for few, more in pairs]
        say(f"{kind} of a guided call: " + ", ".join(f"{x:.1f}" for x in out[f"{kind}_per_call"]))
    return out


def sample(work: Path, calls: int) -> dict:
    """One picture, with the settings that a user gets who asks for nothing but the calls."""
    picture = work / "sample.png"
    picture.unlink(missing_ok=True)
    row = run(
        product(
            "sample",
            f"--workdir={work / 'run'}",
            "--num=1",
            f"--calls={calls}",
            f"--prompt={PROMPT}",
            "--scale=1",
            f"--out={picture}",
        ),
        {"JAX_COMPILATION_CACHE_DIR": str(work / "xla")},
    )
    assert min(size_of(picture)) >= 256 and row["peak_gb"] < LIMIT, row
    return {"calls": calls} | row


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height of a file with one picture and its caption."""
    from PIL import Image

    with Image.open(picture) as image:
        return image.size


def product(command: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "vqd_jax", command, *map(str, arguments)]


def run(command: list[str], environment: dict[str, str] | None = None) -> dict:
    """Seconds, largest resident set and last lines of a process; whoever starts it must be small,
    for a child begins as a copy.
    """
    say(" ".join(command[1:])[:160])
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)} | (environment or {}),
    )
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{output}\nfailed: {' '.join(command)}")
    row = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        "output": output[-2000:],
    }
    say(
        f"{row['seconds']:.1f} s, {row['cpu_seconds']:.1f} s of processors, at most "
        f"{row['peak_gb']:.2f} GB"
    )
    return row


def ithq() -> dict:
    """Memory and operations of the compiled programs of the largest model, from shapes."""
    sys.path.insert(0, str(ROOT / "configs"))
    import ithq as config
    import jax

    c = config.get_config()
    model = shapes(c)
    count = sum(x.size for x in jax.tree.leaves(model.params["denoiser"]))
    assert count == ITHQ, count
    say(f"ITHQ: {count:,} parameters in the denoiser")
    out = {
        "parameters": count,
        "forward_tflop_by_hand": forward(c) / 1e12,
        "6nd_tflop": 6 * ITHQ * 1024 / 1e12,
    }
    out["programs"] = [
        compiled(name, lower, passes * forward(c)) for name, lower, passes in programs(c, model)
    ]
    say(f"6ND of a picture is {out['6nd_tflop']:.2f} TFLOP")
    return out


def shapes(c) -> argparse.Namespace:
    """Both stages of a text model with CLIP's tower, and their weights without their numbers."""
    from vqd_jax.config import build
    from vqd_jax.train import dry_run

    c.denoiser.attention = (
        "full"  # as on accelerators; XLA would count the body of a loop over heads once
    )
    stage, codec, shape = (
        build.diffusion_stage(c, dry_run.tokenizer(c)),
        build.vqvae_stage(c),
        dry_run.shape,
    )
    params, _ = dry_run.eval_init(stage.init, {"text": shape(1, dry_run.CLIP[1], dtype="int32")})
    weights = dry_run.codec_weights(codec, {"image": shape(1, 256, 256, 3, dtype="uint8")})
    return argparse.Namespace(stage=stage, codec=codec, params=params, codec_weights=weights)


def programs(c, model: argparse.Namespace):
    """(name, what lowers it, how often it passes a picture forward through the denoiser) of
    sampling and training as the commands build them. XLA counts the body of a scan once, so one
    call of sampling and one part of an accumulated batch.
    """
    import jax

    from vqd_jax.config import build
    from vqd_jax.runtime.parallel import parallelism
    from vqd_jax.stages import sampling as library
    from vqd_jax.stages.token_stage import Conditioning
    from vqd_jax.train import dry_run

    stage, params, shape = model.stage, model.params, dry_run.shape
    sampler, guidance_config = build.sampling(c, **c.sampling)
    keys = jax.eval_shape(lambda: library.image_keys(0, 0, 1))
    for name, rows in (("guided", 2), ("without guidance", 1)):
        static_guidance = guidance_config.static_guidance(guided=rows == 2)
        conditions = Conditioning(shape(2, 1, 77, dtype="int32"), shape(2, 1, dtype="bool"))
        dynamic = {"scales": shape(1, 1), "temperature": shape(), "top_p": shape()}
        program = jax.jit(
            lambda *x, static_guidance=static_guidance: stage.sample(*x, sampler, static_guidance)
        )
        yield (
            f"sampling, {name}",
            lambda program=program, x=(params, keys, conditions, dynamic): program.lower(*x),
            rows,
        )
    yield (
        "decoding a picture",
        lambda: jax.jit(model.codec.decode).lower(
            model.codec_weights, shape(1, 1024, dtype="int32")
        ),
        0,
    )

    c = c.copy_and_resolve_references()
    c.vqvae.dtype = c.denoiser.dtype = "float32"
    for rows, parts in ((1, 1), (c.diffusion_train.batch_size, c.diffusion_train.accumulate or 1)):
        c.diffusion_train.batch_size, c.diffusion_train.accumulate = rows, parts
        step = dry_run.dry_run(c, "diffusion")
        yield (
            f"training step, {rows} picture{'s' * (rows > 1)}",
            lambda step=step: step.lower(parallelism(devices=1)),
            (3 + (c.denoiser.remat == "full")) * rows / parts,
        )


def compiled(name: str, lower, by_hand: float) -> dict:
    started = time.perf_counter()
    lowered = lower()
    middle = time.perf_counter()
    program = lowered.compile()
    memory, flops = program.memory_analysis(), program.cost_analysis()["flops"]
    row = {
        "program": name,
        "lower_seconds": middle - started,
        "compile_seconds": time.perf_counter() - middle,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "outputs_gb": memory.output_size_in_bytes / 1e9,
        "in_place_gb": memory.alias_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "tflop": flops / 1e12,
        "tflop_by_hand": by_hand / 1e12,
    }
    say(
        f"{name}: lowered in {row['lower_seconds']:.0f} s, compiled in "
        f"{row['compile_seconds']:.0f} s; arguments {row['arguments_gb']:.2f} "
        f"GB, outputs {row['outputs_gb']:.2f} GB ({row['in_place_gb']:.2f} in place), temporaries "
        f"{row['temporaries_gb']:.2f} GB; "
        f"{row['tflop']:.2f} TFLOP" + (f", {row['tflop_by_hand']:.2f} by hand" if by_hand else "")
    )
    return row


def forward(c) -> float:
    """Operations of the matrix products over the tokens when the denoiser sees one picture, two for
    each multiply and add.
    """
    n, m, e, d, k = 1024, 77, c.clip_text.width, c.denoiser.width, c.codebook.codes
    layer = (
        n * (4 + 2 + 2 * c.denoiser.mlp_ratio) * d * d
    )  # self-attention, queries and outputs of cross-attention, MLP
    layer += (
        2 * n * (n + m) * d + m * 2 * e * d
    )  # both attentions themselves, keys and values of the text
    return 2.0 * (c.denoiser.layers * layer + n * d * k)


def say(text: str) -> None:
    print(text, flush=True)


def versions() -> dict:
    from importlib.metadata import version

    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "commit": commit.stdout.strip() or None,
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "memory_gb": memory,
        "machine": platform.processor() or platform.machine(),
        "load_average": os.getloadavg(),
        "versions": {
            name: version(name) for name in ("jax", "flax", "numpy", "orbax-checkpoint", "torch")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/full_size.json"))
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("runs/full_size"),
        help="needs 8 GB; the checkpoint is deleted once it is read",
    )
    parser.add_argument(
        "--vocabulary",
        type=Path,
        help="bpe_simple_vocab_16e6.txt.gz, or a folder with vocab.json and merges.txt",
    )
    parser.add_argument("--parts", nargs="*", default=["base", "ithq"], choices=["base", "ithq"])
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--ithq", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        return write(args.write)
    if args.ithq:
        args.ithq.write_text(json.dumps(ithq()))
        return
    if "base" in args.parts and not (args.vocabulary and args.vocabulary.exists()):
        parser.error("--vocabulary is missing: CLIP's, as above")
    results = json.loads(args.out.read_text()) if args.out.exists() else {}
    for part in args.parts:
        before = versions()
        if part == "base":
            measured = base(args.work.resolve(), args.vocabulary.resolve())
        else:
            args.work.mkdir(parents=True, exist_ok=True)
            file = args.work.resolve() / "ithq.json"
            process = run([sys.executable, __file__, f"--ithq={file}"])
            say(process.pop("output"))
            measured = process | json.loads(file.read_text())
        results[part] = before | measured
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps(results, indent=1).replace(str(args.work.resolve()), "DIR") + "\n"
        )
    say(args.out)


if __name__ == "__main__":
    main()
