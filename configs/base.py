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

    config.compute = ConfigDict()
    config.compute.dtype = "auto"  # of activations and frozen weights: bfloat16 on accelerators, float32 on CPUs
    config.compute.remat = True  # recompute blocks in the backward pass; nothing changes without one
    config.compute.attention = "auto"  # "xla", "heads" (CPUs), or "cudnn" (NVIDIA); "auto" chooses
    config.compute.layers = "auto"  # "scan" (one compiled block in a loop), or "unrolled", for small models on CPUs

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
    config.sampling.guidance = 2.5  # distilled guidance embedding
    config.sampling.text_guidance = 1.0  # true guidance on the MLLM's tokens; 1 is off
    config.sampling.reference_guidance = 1.0  # true guidance on the VAE's tokens; 1 is off
    config.sampling.batch_size = 4  # pictures denoised together
    return config
