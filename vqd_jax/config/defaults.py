"""Every configuration key with its default. A config file sets keys and never adds one; unknown
keys are errors.

Lengths and intervals are in examples seen. Each section goes to one constructor, whose docstring
says more.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from vqd_jax.config.compatibility import without_removed
from vqd_jax.core.errors import UserError


def defaults() -> ConfigDict:
    c = ConfigDict()
    c.seed = 0  # of everything: data order, initial weights, noise
    c.stages = (
        "vqvae",
        "diffusion",
    )  # run in this order; each resumes, runs, or is skipped as done; the third one,
    # autoregressive, is the baseline: it has the sizes, loss and optimiser of diffusion
    c.init_from = ""  # a workdir, own or converted, whose codec and denoiser training begins with
    c.data = ConfigDict(
        dict(
            # emoji | folder | cub | flowers | coco | imagenet | ffhq; its section has the details
            source="emoji",
            image_size=32,  # side of the square images in pixels
            # resize | crop (random) | reference (random, as published); tokens of random
            transform="resize",
            # ones are computed during training
            drop_words=0.0,  # probability of leaving out each word of a training caption
            cache="",  # where built data sets and tokens are kept; "" is <workdir>/cache
        )
    )
    c.emoji = ConfigDict(
        dict(
            styles=("google", "twitter", "openmoji"),
            skin_tones=False,  # keep skin-tone variants
            flags=False,  # keep flags
            people=True,  # keep gendered variants of persons
            categories=(),  # names of categories or subcategories; empty is all
            max_items=0,  # that many emoji, a stable choice; 0 is all
            held_out_cells=0.1,  # share of (emoji, style) pairs held out
            held_out_items=0.03,  # share of emoji held out in all styles
        )
    )
    c.folder = ConfigDict(
        dict(
            path="",  # folder of images with captions
            held_out_cells=0.0,  # share of images held out as "cells"
            held_out_items=0.1,  # share of images held out
        )
    )
    c.cub = ConfigDict(
        dict(  # CUB-200-2011 birds
            # folder with images/ (or CUB_200_2011/images/) and text/, or a TFDS caltech_birds2011
            path="",
            captions="",  # folder with text/, if it is another
        )
    )
    c.flowers = ConfigDict(
        dict(  # Oxford-102 flowers
            path="",  # folder with jpg/ and text_c10/, or a TFDS oxford_flowers102
            captions="",  # folder with text_c10/, if it is another
        )
    )
    c.coco = ConfigDict(
        dict(  # MS-COCO 2014
            path="",  # folder with annotations/, train2014/ and val2014/, or a TFDS coco_captions
        )
    )
    c.imagenet = ConfigDict(
        dict(
            path="",  # folder with train/ and val/, each a folder per synset
        )
    )
    c.ffhq = ConfigDict(
        dict(
            path="",  # folder of images
        )
    )
    c.crop = ConfigDict(
        dict(
            scale=0.9,  # smallest side of the random crop, as a share of the shorter side
            shift=1.0,  # how far it may leave the centre, 0..1
            flip=False,  # mirror half of the images
        )
    )

    c.vqvae = ConfigDict(
        dict(
            channels=64,  # width at the finest resolution
            multipliers=(
                1,
                2,
            ),  # width at each resolution; all but the last are followed by a halving
            residual_blocks=1,  # per resolution; the decoder has one more
            attention_resolutions=(),  # heights of feature maps that get attention
            middle_attention=False,  # attention at the coarsest resolution
            resampling="fold",  # conv (VQGAN) | fold (space to depth, fast on a CPU)
            patch_size=2,  # pixels folded into channels at the start; 1 is the VQGAN
            latent_width=64,  # channels between convolutions and codebook
            dtype="auto",  # auto (bfloat16 on accelerators, float32 on CPUs) | float32 | bfloat16
        )
    )
    c.codebook = ConfigDict(
        dict(
            codes=512,  # k
            width=32,  # of a code vector
            update="ema",  # ema | gradient
            decay=0.99,  # of the moving averages
            smoothing=1e-5,  # Laplace smoothing of the counts
            restart_every=100,  # steps between restarts of dead codes; 0 for never
            restart_below=0.05,  # dead: chosen less often than this share of an even split
        )
    )
    c.discriminator = ConfigDict(
        dict(
            width=64,  # of the first layer
            layers=2,  # halvings
        )
    )
    c.vqvae_loss = ConfigDict(
        dict(
            l1=1.0,  # weights of the terms; 0 switches a term off
            l2=1.0,
            commitment=0.25,
            lpips=0.0,
            lpips_examples=0,  # rows per device that the perceptual term sees; 0 is all
            adversarial=0.0,
            adversarial_start=0,  # examples before the discriminator counts
            adversarial_adaptive=True,  # balance its gradient at the last layer
        )
    )
    c.vqvae_optim = ConfigDict(
        dict(
            learning_rate=1e-3,  # peak
            warmup=3_200,  # examples
            decay="cosine",  # cosine | linear | constant
            final=0.01,  # share of the peak that is left at the end
            betas=(0.9, 0.99),
            weight_decay=1e-4,  # on every parameter
            clip=1.0,  # global norm of the gradient; 0 for no limit
            muon=0.0,  # peak rate of Muon on the matrices; 0: AdamW on everything
        )
    )
    c.vqvae_train = ConfigDict(
        dict(
            examples=50_000,  # length of the stage
            batch_size=64,  # global
            accumulate=1,  # in so many parts, one after the other: less memory, the same gradient
            ema=0.0,  # decay of the average of the weights; 0 for none
            log_every=640,
            evaluate_every=12_800,
            save_every=12_800,
            keep=2,  # checkpoints kept
        )
    )

    c.process = ConfigDict(
        dict(
            # paper (90 % masked, 10 % replaced at the end) | released | absorbing | cosine |
            # uniform | stored
            schedule="paper",
            T=100,  # diffusion steps
            final_mask=0.9,  # of paper, the share that is masked at the end; the rest is replaced
            # of stored, the tables of a released checkpoint: T + 1 numbers, the last for t = 0
            log_alpha=(),
            log_beta=(),
        )
    )
    c.condition = ConfigDict(
        dict(
            kind="text",  # text | class | none
            # what guidance leads away from: learned | empty (the empty caption; the mean of the
            # classes)
            null="learned",
            classes=0,  # of class models
        )
    )
    c.denoiser = ConfigDict(
        dict(
            layers=6,
            width=192,
            heads=6,
            mlp_ratio=4,
            mlp="fc",  # fc (two linear layers) | conv (two 3x3 convolutions)
            positions=(),  # sizes of the position tables, if not the grid's own
            time="learned",  # learned (a table per AdaLN) | sinusoidal
            head="linear",  # linear (as published) | tied (to the token embedding; learns faster)
            # x0, or the previous state z_{t-1} itself, which needs diffusion_loss.auxiliary=0
            predict="x0",
            init_std=0.02,  # of all weights
            dropout=0.0,
            # auto (parts on CPUs) | whole | parts (some heads at a time, in the cache)
            attention="auto",
            dtype="auto",
            # compute layers again in the backward pass: less memory, a third more work
            remat=False,
            scan=False,  # one program for all layers: compiles faster
        )
    )
    c.adapter = ConfigDict(
        dict(  # low-rank adapters of the denoiser in init_from, instead of training all of it
            rank=0,  # 0: none
            alpha=16.0,  # they count alpha / rank times
            kernels="attention",  # attention | all (and the MLP)
        )
    )
    c.text = ConfigDict(
        dict(
            # learned (trained jointly, on byte-pair tokens of the captions) | clip
            encoder="learned",
        )
    )
    c.learned_text = ConfigDict(
        dict(
            vocabulary=2048,  # byte-pair tokens
            length=16,  # tokens per caption
            width=192,
            layers=2,
            heads=6,
        )
    )
    c.clip_text = ConfigDict(
        dict(
            # with vocab.json, merges.txt and model.safetensors, as openai/clip-vit-base-patch32 on
            # the hub
            folder="",
            width=512,
            layers=12,
            heads=8,
        )
    )
    c.diffusion_loss = ConfigDict(
        dict(
            auxiliary=5e-4,  # weight of -log p(x_0), as in the paper
            adaptive_auxiliary=False,  # times 2 - (t - 1)/T
            importance=True,  # draw t by the history of losses
            drop_caption=0.1,  # share of captions replaced by the null embedding
        )
    )
    c.diffusion_optim = ConfigDict(
        dict(
            learning_rate=1e-3,
            warmup=12_800,
            decay="cosine",
            final=0.01,
            betas=(0.9, 0.96),
            weight_decay=0.045,
            clip=0.5,
            muon=0.0,
        )
    )
    c.diffusion_train = ConfigDict(
        dict(
            examples=200_000,
            batch_size=128,
            accumulate=0,  # 0: what suits the machine, on a CPU parts of 1024 tokens or less
            ema=0.999,
            log_every=1_280,
            evaluate_every=51_200,
            save_every=25_600,
            keep=2,
        )
    )

    c.sampling = ConfigDict(
        dict(  # what sample and the pictures use unless told otherwise
            # ancestral | counts | remask | released_fast | prior_rule; their sections are below.
            sampler="ancestral",
            # autoregressive, of models of that stage: they have no other;
            # previous, of models with denoiser.predict=previous, likewise
            calls=25,  # network calls
            guidance=2.0,  # 1 is none
            # what it leads away from: learned (the model's own null) | empty (the empty caption)
            null="learned",
            ramp=False,  # let the guidance grow as tokens appear
            guidance_below=1.0,  # guide only while at most this share of the tokens is masked
            temperature=1.0,
            top_p=1.0,  # the smallest set of codes with this mass; 1 is all
            top_k=0,  # the k likeliest codes; 0 is all
        )
    )
    c.counts = ConfigDict(
        dict(
            order="random",  # random | confidence | purity | halton
            # tokens per call: uniform | cosine | planned (vqd plan) | auto (planned if there is a
            # plan)
            counts="auto",
            noise=4.5,  # of confidence
            polish=0,  # last calls that are ancestral
            polish_from=0.25,  # where they begin, as a share of T
            origin="masked",  # start from masked tokens only, or from the schedule's end (process)
        )
    )
    c.remask = ConfigDict(
        dict(
            eta=0.02,  # share of the largest rate of remasking
            share=0.5,  # of the calls, the last ones
        )
    )
    c.prior_rule = ConfigDict(
        dict(
            rule=2,  # 1: even | 2: purity
            weight=0.0,  # sharpens by 1 + weight * purity
            per_call=1024,  # most tokens that a network call reveals
        )
    )
    c.preview = ConfigDict(
        dict(
            pictures=8,  # of each kind, at every evaluation and at the end
            prompts=(
                "a google style emoji of a blue apple",
                "a twitter style emoji of a happy robot",
            ),  # free text
        )
    )
    c.held_out = ConfigDict(
        dict(
            examples=512,  # images per split in the evaluations during training
            draws=4,  # times t per image in the estimate of the bound
            lpips=True,  # the codec's perceptual distance, with VGG16
        )
    )
    c.evaluation = ConfigDict(
        dict(  # the protocol of evaluate without --protocol, and its numbers where they are not 0
            # emoji | vqdiffusion-cub | vqdiffusion-coco | … | adm | clean;
            # vqd_jax/eval/protocols.py has them
            name="emoji",
            images=0,  # pictures per split
            bound_images=0,  # images per split for the bound
            draws=0,  # times t per image
            subsets=0,  # of the kernel distance
            subset_size=0,
            seed=0,
        )
    )
    c.guard = ConfigDict(
        dict(  # against bad numbers, and runs that hang
            # a loss that is so many medians of the last 64 above them takes training back to its
            # last
            spike=10.0,
            # checkpoint, to leave out that batch, as one that is not finite does; 0 is only those
            tries=4,  # times in a row, each of which leaves out more batches, before the run ends
            hang=50.0,  # a run ends that makes no step in so many times the usual time,
            hang_seconds=300.0,  # and at least this time; 0 for hang is never
        )
    )
    c.profile = ConfigDict(
        dict(
            # of each stage that are traced, soon after its start, into its folder profile; 0 is
            # none
            steps=0,
        )
    )
    c.parallel = ConfigDict(
        dict(
            # pmap (data parallel) | mesh (parameters cut over its axes fsdp and tensor)
            strategy="pmap",
            devices=0,  # of each process; 0 is all
            fsdp=1,  # sizes of these axes of the mesh; the rest of the devices is data parallel
            tensor=1,
        )
    )
    return c.lock()


def with_variant(
    c: ConfigDict, variant: str, variants: dict[str, Callable[[ConfigDict], None]]
) -> ConfigDict:
    """The config after the changes of its variant, which is what follows the colon in
    --config=FILE:VARIANT.
    """
    if variant not in variants:
        named = ", ".join(f":{name}" for name in variants if name) or "none"
        raise UserError(f"this config has no variant {variant!r}; it has {named}")
    variants[variant](c)
    return c


def complete(stored: dict[str, Any]) -> ConfigDict:
    """A config that a checkpoint stores, with the defaults of keys that are younger than it.
    UserError for unknown keys.
    """
    config = defaults()
    for section, values in stored.items():
        if isinstance(values, dict):
            values = without_removed(section, values)
        if section not in config or isinstance(values, dict) and set(values) - set(config[section]):
            raise UserError(
                f"the stored config has a section or key in {section!r} that this version does "
                "not know"
            )
        if isinstance(values, dict):
            with config[section].ignore_type():
                config[section].update(values)
        else:
            with config.ignore_type():
                config[section] = values
    return config
