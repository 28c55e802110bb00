"""What every experiment shares; `model` holds no sizes here, an experiment fills it in.

Use: an experiment imports this file, calls `get_config()` and changes few lines.
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """The shared keys. `variant` is unused here."""
    del variant
    config = ConfigDict()
    config.seed = 0

    config.model = ConfigDict()
    config.model.frozen_dtype = "auto"  # of frozen projections: the compute dtype; or "int8", half of bfloat16's memory

    config.compute = ConfigDict()
    config.compute.dtype = "auto"  # of activations and frozen weights: bfloat16 on accelerators, float32 on CPUs
    config.compute.remat = True  # recompute blocks in the backward pass; nothing changes without one
    config.compute.attention = "auto"  # "xla", "heads" (CPUs), "cudnn" (NVIDIA), "splash" (TPUs); "auto" chooses
    config.compute.layers = "auto"  # "scan" (one compiled block in a loop), or "unrolled", for small models on CPUs
    config.compute.offload = False  # drawing: parameters wait in host memory, each program's come for its turn

    config.mesh = ConfigDict()  # devices along each axis; -1 takes what the others leave
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.tensor = 1

    config.prompt = ConfigDict()
    config.prompt.system = "You are a helpful assistant."
    config.prompt.max_tokens = 512  # of the MLLM, template's tail included
    config.prompt.pad_to = 64  # tokens; prompts are padded to a multiple, so that few lengths are compiled
    config.prompt.clip_tokens = 77
    config.prompt.pooled = "prompt"  # what CLIP reads: "prompt", or "empty" for the empty prompt

    config.reference = ConfigDict()
    config.reference.long_side = 512  # pixels, VAE branch, one reference
    config.reference.long_side_several = 320  # pixels, VAE branch, several references
    config.reference.max_references = 4
    config.reference.max_aspect = 8.0  # long side / short side
    config.reference.mean = (0.485, 0.456, 0.406)  # of [0, 1] pixels, what InternVL was trained with
    config.reference.std = (0.229, 0.224, 0.225)

    config.shift = ConfigDict()  # FLUX.1-dev's scheduler
    config.shift.base_tokens = 256
    config.shift.max_tokens = 4096
    config.shift.base_shift = 0.5
    config.shift.max_shift = 1.15

    config.sampling = ConfigDict()
    config.sampling.height = 512  # pixels, multiple of 16
    config.sampling.width = 512
    config.sampling.steps = 28
    config.sampling.tau1 = 0.95  # MLLM alone while t >= tau1 (t = 1 is noise, after the shift)
    config.sampling.tau2 = 0.85  # MLLM and VAE while tau2 <= t < tau1, then VAE alone
    config.sampling.last_stage = "drop_all"  # or "keep_text": the last stage keeps the MLLM's text tokens
    config.sampling.conditions = "staged"  # or "both", "mllm", "vae": the same at every step, whatever tau1 and tau2
    config.sampling.guidance = 2.5  # distilled guidance embedding
    config.sampling.text_guidance = 1.0  # true guidance on the MLLM's tokens; 1 is off
    config.sampling.reference_guidance = 1.0  # true guidance on the VAE's tokens; 1 is off
    config.sampling.batch_size = 4  # pictures denoised together

    config.data = ConfigDict()
    # "toyworld", FILE.jsonl, UNO-1M's FILE.json, a folder of ArrayRecord or parquet files, tfds:NAME[:CONFIG][@DIR]
    config.data.source = "toyworld"
    config.data.split = "train"  # of toyworld and TFDS
    config.data.examples = 1_000_000  # that toyworld draws
    config.data.sizes = ((512, 512), (576, 448), (448, 576), (640, 400), (400, 640))  # targets: height, width in pixels
    config.data.max_references = 1  # an example with more keeps its first ones
    # Of the prompt and the template's tail; longer prompts are skipped. With the empty prompt's 5, a tile's 256 and
    # twice 1,024 of 512 x 512 pixels they are 2,560, whole lanes of a TPU: 2,565 would be copied to be filled up.
    config.data.prompt_tokens = 251
    config.data.swap = 0.0  # probability that target and (single) reference change places
    config.data.flip = 0.0  # probability that a reference is mirrored
    config.data.crop = 1.0  # smallest share of a reference's area that a random crop keeps; 1: no crop
    config.data.remove_background = 0.0  # probability that a reference with a mask is put on white
    config.data.min_scores = ()  # such as (("dino", 0.7), ("aesthetic", 6.0)); others are left out
    config.data.max_skipped = 0.01  # share of unreadable examples at which the run stops
    config.data.threads = 8  # that read and decode, on each host
    config.data.prefetch = 4  # batches made ahead, on each host
    # Folder for what the frozen towers say of each row, so that it is computed once; "": computed at each step. For
    # data sets that come round again unchanged: a random crop is a new row, and toyworld hardly repeats itself.
    config.data.cache = ""
    # "latents": of the VAE, 0.4 MB an example at 512x512. "all": the states of all of the MLLM's layers and CLIP's
    # vector too, 106 MB at full size (29 x 512 x 3584, bfloat16), so for small models or few examples.
    config.data.cache_parts = "latents"

    config.train = ConfigDict()
    config.train.weights = ""  # checkpoint folder of the frozen weights, "tiny", or "random"
    config.train.warm_start = False  # begin with the DLA of "tiny" (mllmsubj pretrain --part=dla), not a random one
    config.train.start_from = ""  # workdir or checkpoint whose trained parameters are the start, instead of those
    config.train.batch_size = 64  # examples an update, over all devices
    config.train.accumulate = 1  # parts of a batch whose gradients are summed before the update
    for stage, steps in (("stage1", 25_000), ("stage2", 10_000)):
        config.train[stage] = ConfigDict()
        config.train[stage].steps = steps
        config.train[stage].warmup_steps = 500  # learning rates grow from 0
        config.train[stage].cooldown_steps = 0  # at the end they fall to 0
        config.train[stage].learning_rates = (("dla/.*", 1e-4), (".*/lora_[ab]", 5e-5))  # None: frozen
    config.train.stage1.modes = ConfigDict(dict(both=0.0, mllm=0.9, vae=0.0, none=0.1))  # shares of the examples
    config.train.stage2.modes = ConfigDict(dict(both=0.6, mllm=0.15, vae=0.15, none=0.1))
    config.train.time = ConfigDict()
    config.train.time.density = "logit_normal"  # of t; or "shifted_uniform", by `shift` and the picture's tokens
    config.train.time.mean = 0.0  # of the logit of t
    config.train.time.std = 1.0
    config.train.guidance = 1.0  # what the guidance embedding reads in training
    config.train.sample_posterior = True  # targets are drawn from the VAE's posterior; False takes its mean
    config.train.optimizer = "adamw"  # or "muon": that for matrices inside, AdamW for all else
    config.train.beta1 = 0.9
    config.train.beta2 = 0.999
    config.train.weight_decay = 0.01
    config.train.clip_norm = 1.0  # of the global gradient
    config.train.ema_decay = 0.999  # of the trained parameters; 0 is off
    config.train.max_bad_steps = 10  # updates in a row with NaN or Inf, each left out, at which the run stops

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 1000
    config.checkpoint.every_minutes = 15.0  # 0: off
    config.checkpoint.grace_seconds = 120.0  # after SIGTERM, for the save that is then made
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every_steps = 5000  # these stay for good; 0: off
    config.checkpoint.keep_best = 0  # this many by `best` stay too
    config.checkpoint.best = "loss/all"  # a number that an evaluator gives
    config.checkpoint.best_is = "min"

    config.log = ConfigDict()
    config.log.every_steps = 50
    config.log.tensorboard = True
    config.log.wandb = ""  # project of Weights & Biases
    config.log.profile_start = 10  # steps after the start
    config.log.profile_steps = 0  # 0: no profile

    config.evals = ConfigDict()  # every_steps 0: off
    config.evals.source = ""  # as data.source; empty: the same source's test split
    config.evals.loss = ConfigDict(dict(every_steps=1000, examples=256))
    config.evals.samples = ConfigDict(dict(every_steps=2500, count=4, steps=0))  # sampler's steps 0: as in `sampling`

    config.pretrain = None  # making the parts themselves, on toyworld: the tiny model's only, see configs/tiny.py
    return config
