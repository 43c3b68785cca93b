"""Every configuration key with its default.

A config file sets keys and never adds one; unknown keys are errors. Lengths and intervals are in
examples seen. Each section goes to one constructor, whose docstring says more.
"""

import functools
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from vqd_jax.config.compatibility import upgrade
from vqd_jax.core.errors import UserError


def defaults() -> ConfigDict:
    """A locked config in which every key has its default."""
    c = ConfigDict()
    c.seed = 0  # random seed of the data order, initial weights and noise
    # On GPUs, where the order of some sums is otherwise left open: the same bits from every run,
    # somewhat slower. CPUs and TPUs do that always.
    c.deterministic = False
    # Stages to train, in this order. The stage autoregressive is the baseline: it takes the sizes,
    # loss and optimiser of diffusion.
    c.stages = ("vqvae", "diffusion")
    # workdir, trained or converted, whose weights training starts from; of one with a codec alone,
    # the codec over whose tokens a fresh model is trained
    c.init_from = ""
    c.data = _section(
        # emoji | folder | cub | flowers | coco | imagenet | ffhq | datasets; each has a section
        # below
        source="emoji",
        image_size=32,  # side of the square images, in pixels
        # resize | crop (random) | reference (random, as in the released code); with random
        # transforms, tokens are computed during training
        transform="resize",
        # srgb (colours are converted from the file's profile) | raw (as in the released code)
        colour="srgb",
        drop_words=0.0,  # probability of dropping each word of a training caption
        threads=0,  # batches loaded at the same time; 0 is one for each core, at most 16
        workers=0,  # processes among which these threads are divided; 0 is none but this one
        cache="",  # folder for prepared data sets and tokens; "" is <workdir>/cache
    )
    c.mixture = _section(  # shares of training examples; 0 and 0 draw all records equally often
        recoloured=0.0,  # fraction with recoloured images
        pairs=0.0,  # fraction with two things in one image
        pairs_from=0.5,  # fraction of training after which there are pairs
    )
    c.emoji = _section(
        # google, twitter, openmoji; and with npm and the extra `icons`: flat, fluent, blob,
        # emojione, classic, streamline, firefox
        styles=("google", "twitter", "openmoji"),
        skin_tones=False,  # include skin-tone variants
        flags=False,  # include flags
        people=True,  # include gendered variants of people
        categories=(),  # names of categories or subcategories; empty for all
        max_items=0,  # number of emoji, a fixed choice; 0 for all
        held_out_cells=0.1,  # fraction of (emoji, style) pairs held out
        held_out_items=0.03,  # fraction of emoji held out in all styles
        recoloured=False,  # also in the others of seven colours, which their captions name
        mirrored=False,  # also mirrored, where left and right do not matter
        pairs=0,  # number of further images that show two things
        held_out_colours=0.1,  # fraction of (emoji, colour) pairs held out in all styles
        held_out_pairs=0.1,  # fraction of pairs of emoji held out in all styles
        wording="plain",  # of training captions: plain | varied (vqd_jax/data/emoji_wording.py)
    )
    c.folder = _section(
        path="",  # folder of images, with captions for text models
        caption="lines",  # a text file has a caption on each line (lines), or is one (file)
        image_key="",  # columns of tables; "" finds file_name, image, … and text, caption, …
        text_key="",
        held_out_cells=0.0,  # fraction of images held out in the split held_out_cells
        held_out_items=0.1,  # fraction of images held out in the split held_out_items
    )
    c.datasets = _section(  # what Hugging Face's `datasets` reads; needs the extra `datasets`
        path="",  # data set of the hub (OWNER/NAME), or file or folder: parquet, webdataset (.tar)
        files="",  # pattern of its files, such as data/*.tar; "" for those of the split
        name="",  # subset of a data set that has several
        split="train",
        image="",  # column of the images; "" finds the only one
        # column of the captions, a text or a list of texts; a field of a column is COLUMN.FIELD;
        # "" finds text, caption, …, and for class models the ClassLabel
        caption="",
        revision="",  # branch, tag or commit of a data set of the hub
        held_out_items=0.1,  # fraction of images held out in the split held_out_items
    )
    c.cub = _section(  # CUB-200-2011 birds
        # folder with images/ (or CUB_200_2011/images/) and text/, or a TFDS caltech_birds2011
        path="",
        captions="",  # folder with text/, if it is elsewhere
    )
    c.flowers = _section(  # Oxford-102 flowers
        path="",  # folder with jpg/ and text_c10/, or a TFDS oxford_flowers102
        captions="",  # folder with text_c10/, if it is elsewhere
    )
    c.coco = _section(  # MS-COCO 2014 or 2017
        path="",  # folder with annotations/, train2014/ and val2014/, or a TFDS coco_captions
    )
    c.imagenet = _section(
        path="",  # folder with train/ and val/, each with a folder per synset
    )
    c.ffhq = _section(
        path="",  # folder of images
    )
    c.crop = _section(
        scale=0.9,  # smallest side of the random crop, as a fraction of the shorter side
        shift=1.0,  # largest distance from the centre; 0 is a centre crop, 1 reaches the border
        flip=False,  # mirror half of the images
    )

    c.vqvae = _section(
        channels=64,  # width at the finest resolution
        multipliers=(1, 2),  # of the width at each resolution, each of which halves the one before
        residual_blocks=1,  # per resolution; the decoder has one more
        attention_resolutions=(),  # heights of the feature maps that get attention
        middle_attention=False,  # attention at the coarsest resolution
        resampling="fold",  # conv (VQGAN) | fold (space to depth, fast on a CPU)
        patch_size=2,  # pixels folded into channels at the input; 1 is the VQGAN
        latent_width=64,  # channels between convolutions and codebook
        dtype="auto",  # auto (bfloat16 on accelerators, float32 on CPUs) | float32 | bfloat16
    )
    c.codebook = _section(
        codes=512,  # k
        width=32,  # of a code vector
        groups=1,  # residual codes at each position, each with its own k; their sum is decoded
        updates="ema",  # of the codes: ema | gradient
        decay=0.99,  # of the moving averages
        smoothing=1e-5,  # Laplace smoothing of the counts
        restart_every=100,  # steps between restarts of dead codes; 0 for never
        restart_below=0.05,  # a code is dead if used less than this fraction of uniform use
    )
    c.discriminator = _section(
        width=64,  # of the first layer
        layers=2,  # strided layers
    )
    c.vqvae_loss = _section(
        l1=1.0,  # weights of the terms; 0 switches a term off
        l2=1.0,
        commitment=0.25,
        lpips=0.0,
        lpips_examples=0,  # images per device for the perceptual term; 0 for all
        adversarial=0.0,
        adversarial_start=0,  # examples before the adversarial term is switched on
        adversarial_adaptive=True,  # balance its gradient at the last layer
    )
    c.vqvae_optim = _section(
        learning_rate=1e-3,  # peak
        warmup=3_200,  # examples
        decay="cosine",  # cosine | linear | constant
        final=0.01,  # final learning rate, as a fraction of the peak
        betas=(0.9, 0.99),
        weight_decay=1e-4,  # on every parameter
        clip=1.0,  # global norm of the gradient; 0 for no clipping
        muon=0.0,  # peak learning rate of Muon for the matrices; 0 uses AdamW for everything
    )
    c.vqvae_train = _section(
        examples=50_000,  # length of the stage
        batch_size=64,  # global
        accumulate=1,  # micro-batches per step: less memory, the same gradient
        ema=0.0,  # decay of the moving average of the weights; 0 for none
        log_every=640,
        evaluate_every=12_800,
        save_every=12_800,
        save_minutes=15.0,  # save at least this often, in minutes; 0 for never
        keep=2,  # number of newest checkpoints kept
        # also keep the best checkpoint by this measure of the evaluations: psnr | ssim | lpips;
        # "" keeps none
        best="",
    )

    c.process = _section(
        # paper (90 % masked, 10 % replaced at the end) | released | absorbing | cosine |
        # hybrid (masked at the end, some replaced in between) | uniform |
        # stored (log_alpha, log_beta)
        schedule="paper",
        T=100,  # diffusion steps
        final_mask=0.9,  # paper: fraction masked at t = T; the rest is replaced
        replaced=0.2,  # hybrid: fraction replaced at t = T/2, the largest; in [0, 0.25]
        # stored: tables of a released checkpoint, T + 1 numbers, the last for t = 0
        log_alpha=(),
        log_beta=(),
    )
    c.condition = _section(
        kind="text",  # text | class | none
        # null condition of guidance: learned | empty (the empty caption; the mean of the classes)
        null="learned",
        classes=0,  # number of classes of a class model
    )
    c.denoiser = _section(
        layers=6,
        width=192,
        heads=6,
        mlp_ratio=4,
        mlp="fc",  # fc (two linear layers) | conv (two 3x3 convolutions)
        positions=(),  # sizes of the position tables; () for the grid's own
        time="learned",  # learned (a table per AdaLN) | sinusoidal
        head="linear",  # linear (as published) | tied (to the token embedding; trains faster)
        init_std=0.02,  # of all weights
        dropout=0.0,
        # auto (what the devices have) | full | chunked (a few heads at a time, in a CPU's cache) |
        # cudnn (NVIDIA GPUs, bfloat16) | splash (TPUs); elsewhere, the last two are auto
        attention="auto",
        dtype="auto",
        # what is computed again in the backward pass: none | products (all but the products: a
        # little more work) | full (all: the least memory, a third more work)
        remat="none",
        scan=False,  # one compiled layer for all: compiles faster
    )
    c.adapter = _section(  # LoRA: low-rank adapters of the denoiser in init_from
        rank=0,  # 0 trains the denoiser itself
        alpha=16.0,  # the adapter is scaled by alpha / rank
        kernels="attention",  # attention | all (and the MLP)
    )
    c.text = _section(
        encoder="learned",  # learned (trained jointly, on byte-pair tokens of the captions) | clip
    )
    c.learned_text = _section(
        vocabulary=2048,  # byte-pair tokens
        length=16,  # tokens per caption
        width=192,
        layers=2,
        heads=6,
    )
    c.clip_text = _section(
        # folder with vocab.json, merges.txt and model.safetensors, or a Hugging Face name such as
        # openai/clip-vit-base-patch32
        folder="",
        width=512,
        layers=12,
        heads=8,
    )
    c.diffusion_loss = _section(
        auxiliary=5e-4,  # weight of -log p(x_0), as in the paper
        adaptive_auxiliary=False,  # scale it by 2 - (t - 1)/T
        importance=True,  # importance sampling of t by past losses
        drop_caption=0.1,  # fraction of captions replaced by the null condition
    )
    c.diffusion_optim = _section(
        learning_rate=1e-3,
        warmup=12_800,
        decay="cosine",
        final=0.01,
        betas=(0.9, 0.96),
        weight_decay=0.045,
        clip=0.5,
        muon=0.0,
    )
    c.diffusion_train = _section(
        examples=200_000,
        batch_size=128,
        accumulate=0,  # 0 chooses: on a CPU micro-batches of at most 1024 tokens, else one
        ema=0.999,
        log_every=1_280,
        evaluate_every=51_200,
        save_every=25_600,
        save_minutes=15.0,  # save at least this often, in minutes; 0 for never
        keep=2,
        best="",  # retrieval@1 | retrieval@5 | style_accuracy; they need held_out.retrieval
    )

    c.sampling = _section(  # what sample, demo and previews use by default
        # ancestral | counts | remask | released_fast | prior_rule; their options are below.
        # autoregressive models have one sampler: autoregressive
        sampler="ancestral",
        calls=25,  # network calls (steps)
        guidance=2.0,  # classifier-free guidance scale; 1 is no guidance
        null="learned",  # null condition: learned | empty (the empty caption)
        ramp=False,  # increase guidance as tokens are revealed
        guidance_below=1.0,  # apply guidance only while at most this fraction is masked
        temperature=1.0,
        top_p=1.0,  # smallest set of codes with this probability mass; 1 is all
        top_k=0,  # the k most likely codes; 0 is all
    )
    c.counts = _section(
        order="random",  # random | confidence | purity | halton
        # tokens per call: uniform | cosine | planned (vqd plan) | auto (planned if there is a plan)
        counts="auto",
        noise=4.5,  # of order=confidence
        polish=0,  # number of final calls that are ancestral
        polish_from=0.25,  # time at which they start, as a fraction of T
        origin="masked",  # start from masked tokens only (masked), or from z_T (process)
    )
    c.remask = _section(
        eta=0.02,  # remasking rate, as a fraction of the largest possible
        share=0.5,  # fraction of the calls, at the end, that remask
    )
    c.prior_rule = _section(
        rule=2,  # 1: even | 2: purity
        weight=0.0,  # sharpens p(x_0) by 1 + weight * purity
        per_call=1024,  # largest number of tokens revealed in one call
    )
    c.preview = _section(
        pictures=8,  # images of each kind, at every evaluation and at the end; 0 for none
        prompts=(  # free text
            "a google style emoji of a blue apple",
            "a twitter style emoji of a happy robot",
        ),
    )
    c.held_out = _section(
        examples=512,  # images per split in the evaluations during training; 0 for none
        draws=4,  # times t per image in the estimate of the bound
        lpips=True,  # the codec's perceptual distance, with VGG16
        # images drawn in each evaluation, for captions of the validation half of the held-out
        # pairs, and retrieved among the real images; 0 for none
        retrieval=0,
    )
    c.evaluation = _section(  # protocol of `vqd evaluate`; 0 keeps the protocol's own number
        # emoji | vqdiffusion-cub | vqdiffusion-coco | … | adm | clean (vqd_jax/eval/protocols.py)
        name="emoji",
        images=0,  # images per split
        bound_images=0,  # images per split for the bound
        draws=0,  # times t per image
        subsets=0,  # of the kernel distance
        subset_size=0,
        seed=0,
    )
    c.guard = _section(  # against divergence and hangs
        # roll back and skip the batch if the loss, relative to the median of the last 128, exceeds
        # the highest of the last 2,000 or so by this factor, or if 24 of 32 losses exceed the
        # median of those before by its square root; 0 checks for NaN and inf only
        spike=10.0,
        tries=4,  # roll-backs in a row, each of which skips more batches, before the run ends
        hang=50.0,  # end the run if a step takes this many times the usual time; 0 for never
        hang_seconds=300.0,  # but not before this time
    )
    c.wandb = _section(  # Weights & Biases, beside TensorBoard; needs the extra `wandb`
        project="",  # "" for none; environment variables (WANDB_MODE, WANDB_ENTITY, …) set the rest
    )
    c.profile = _section(
        steps=0,  # steps of each stage to trace, soon after its start, into its folder profile
    )
    c.parallel = _section(
        strategy="pmap",  # pmap (data parallel) | mesh (with parameters sharded over fsdp, tensor)
        devices=0,  # per process; 0 for all
        fsdp=1,  # sizes of these mesh axes; the other devices are data parallel
        tensor=1,
    )
    return c.lock()


def _section(**keys: Any) -> ConfigDict:
    return ConfigDict(keys)


def with_variant(
    c: ConfigDict, variant: str, variants: dict[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """The config after the changes of its variant, the part after the colon in
    --config=FILE:VARIANT.
    """
    if variant not in variants:
        named = ", ".join(f":{name}" for name in variants if name) or "none"
        raise UserError(f"this config has no variant {variant!r}; it has {named}")
    variants[variant](c)
    return c


def complete(stored: dict[str, Any]) -> ConfigDict:
    """A config that a checkpoint stores, with the defaults of keys that were added later. UserError
    for unknown keys, and for values of another kind than the default's.
    """
    config = defaults()
    for section, values in upgrade(stored).items():
        own = config.get(section)
        if isinstance(own, ConfigDict) and isinstance(values, dict):
            for key, value in values.items():
                _set(own, key, value, f"{section}.{key}")
        else:
            _set(config, section, values, section)
    return config


def _set(section: ConfigDict, key: str, value: Any, shown: str) -> None:
    if key not in section:
        raise UserError(f"the stored config has a key {shown!r} that this version does not know")
    if _kind(value) != _kind(section[key]):
        raise UserError(
            f"the stored config has {shown}={value!r}, where a {_kind(section[key])} belongs"
        )
    with section.ignore_type():
        section[key] = value


def _kind(value: Any) -> str:
    """What sort of value it is, after JSON, too, which has no tuples."""
    kinds = {bool: "truth value", int: "number", float: "number", str: "text"}
    kinds |= {list: "list", tuple: "list", dict: "section", ConfigDict: "section"}
    return kinds.get(type(value), "value of another kind")


@functools.cache
def sampler_options() -> tuple[str, ...]:
    """The names of all samplers' own options, each once."""
    known, sections = defaults(), ("counts", "remask", "prior_rule")
    return tuple(dict.fromkeys(name for section in sections for name in known[section]))
