"""All emoji in ten drawing styles, 64 px, recoloured and two at a time: the model to show.

  python -m vqd_jax.main --config=configs/emoji64.py --workdir=runs/emoji64
  python -m vqd_jax.main --config=configs/emoji64.py:codec --workdir=runs/emoji64
                                       the codec alone; the denoisers below start from its workdir:
  python -m vqd_jax.main --config=configs/emoji64.py:noise_hybrid_20 --workdir=runs/noise
                                       a small denoiser, to compare schedules: noise_absorbing,
                                       noise_paper, noise_hybrid_10, noise_hybrid_20
  python -m vqd_jax.main --config=configs/emoji64.py:pilot --workdir=runs/pilot
                                       the denoiser of the full model, a ninth of its training
  python -m vqd_jax.main --config=configs/emoji64.py:three_styles --workdir=runs/three
                                       the denoiser for Google, Twitter and OpenMoji alone; needs
                                       no npm; made pretrained/emoji64

The data need npm and `pip install -e ".[icons]"` once: seven icon sets of the npm registry, beside
the three styles that install with pip. pretrained/emoji64 has the trained codec: with
--config.init_from=pretrained/emoji64 the denoisers read its tokens.

Hardware and hours: two cores of an Intel Xeon with AMX, with --config.vqvae.dtype=bfloat16 and
--config.denoiser.dtype=bfloat16, for CPUs with AMX or AVX-512 units for bfloat16: codec about 2
hours, three_styles 2 hours (0.75 s a step of 64 examples), the denoiser of all ten styles about 13.
Everything resumes.

Training on from a denoiser, as of pretrained/emoji64, needs lower rates, such as
--config.diffusion_optim.muon=3e-4 --config.diffusion_optim.learning_rate=1e-4: with 2e-3 the loss
rises by two nats first, and takes thousands of steps to come back.

docs/samplers.md compares other values of guidance and temperature.
"""

from vqd_jax.config.defaults import defaults, with_variant

# Fixed before any training: the free text of the previews during training.
PROMPTS = (
    "a google style emoji of a red apple",
    "a twitter style emoji of a purple sofa",
    "an openmoji style emoji of a blue cat",
    "a flat style emoji of a green robot",
    "a fluent style emoji of a cat and a pizza",
    "a blob style emoji of a puppy",
    "an emojione style emoji of a pizza with a flower",
    "a yellow car",
)


def get_config(variant: str = ""):
    c = defaults()
    data(c)
    codec(c)
    denoiser(c)
    c.preview.pictures, c.preview.prompts = 8, PROMPTS
    return with_variant(
        c,
        variant,
        {
            "": lambda c: None,
            "codec": only_codec,
            "pilot": pilot,
            "three_styles": three_styles,
            "noise_absorbing": lambda c: noise(c, "absorbing"),
            "noise_paper": lambda c: noise(c, "paper"),
            "noise_hybrid_10": lambda c: noise(c, "hybrid", 0.1),
            "noise_hybrid_20": lambda c: noise(c, "hybrid", 0.2),
        },
    )


def data(c):
    c.data.image_size = 64
    c.data.drop_words = 0.2
    c.emoji.styles = (
        "google",
        "twitter",
        "openmoji",
        "flat",
        "fluent",
        "blob",
        "emojione",
        "classic",
        "streamline",
        "firefox",
    )
    c.emoji.people = False
    c.emoji.recoloured = c.emoji.mirrored = True
    c.emoji.pairs = 20_000
    c.emoji.wording = "varied"
    c.mixture.recoloured = c.mixture.pairs = 0.25


def codec(c):
    c.vqvae.patch_size = 4
    c.codebook.groups = 2
    c.codebook.decay = 0.97
    c.codebook.restart_every = 25
    c.vqvae_loss.lpips = 0.3
    c.vqvae_loss.lpips_examples = 8
    c.vqvae_optim.muon = 3e-3
    c.vqvae_train.batch_size = 32
    c.vqvae_train.examples = 240_000
    c.vqvae_train.evaluate_every = c.vqvae_train.save_every = 16_000
    c.vqvae_train.best = "lpips"


def denoiser(c):
    c.process.schedule = "hybrid"
    c.denoiser.layers = 8
    c.denoiser.width = c.learned_text.width = 256
    c.denoiser.heads = c.learned_text.heads = 8
    c.denoiser.head = "tied"
    c.denoiser.dropout = 0.1
    c.learned_text.layers = 0  # without attention between words, unseen pairs generalise better
    c.learned_text.length, c.learned_text.vocabulary = 24, 4096
    c.diffusion_loss.auxiliary = 0.03
    c.diffusion_optim.muon = 4e-3
    c.diffusion_optim.weight_decay = 0.1
    c.diffusion_optim.warmup = 20_000
    c.diffusion_train.ema = 0.9995
    c.diffusion_train.batch_size = 64
    c.diffusion_train.examples = 3_700_000
    c.diffusion_train.evaluate_every = 400_000
    c.diffusion_train.save_every = 12_800
    c.diffusion_train.best = "retrieval@1"
    c.held_out.examples, c.held_out.draws, c.held_out.retrieval = 256, 2, 256
    c.evaluation.name = "emoji64"
    c.sampling.guidance, c.sampling.ramp, c.sampling.temperature = 1.5, True, 0.5


def only_codec(c):
    c.stages = ("vqvae",)


def pilot(c):
    c.stages = ("diffusion",)
    c.mixture.pairs = 0.1
    c.denoiser.dropout = 0.0  # it sees an image 20 times at most
    c.diffusion_train.ema = 0.999
    c.diffusion_train.examples = 400_000
    c.diffusion_train.evaluate_every = 100_000


def three_styles(c):
    pilot(c)
    c.emoji.styles = ("google", "twitter", "openmoji")
    c.diffusion_train.examples = c.diffusion_train.evaluate_every = 550_000


def noise(c, schedule, replaced=0.2):
    c.stages = ("diffusion",)
    c.process.schedule, c.process.replaced = schedule, replaced
    c.denoiser.layers, c.denoiser.width, c.denoiser.heads = 4, 128, 4
    c.learned_text.width, c.learned_text.heads = 128, 4
    c.diffusion_train.examples = 300_000
    c.diffusion_train.evaluate_every = 150_000
