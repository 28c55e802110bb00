"""The real architecture, small: every part and every option of the paper's model on two CPU cores.

    mllmsubj generate --checkpoint=tiny --reference=cat.jpg --prompt="a cat on the moon" --output=cat.png

Pictures of 128 x 128; 7.6 M parameters in all.
"""

from ml_collections import ConfigDict

from configs import paper


def get_config(variant: str = "") -> ConfigDict:
    """The embedded default.

    `variant` "full": the transformer's first lessons, see below and `make pretrain-tiny`; "short": both stages in 280
    steps, a quarter of an hour on two cores, as the tables of docs/toyworld.md were made.
    """
    config = paper.get_config()
    model = config.model

    model.mllm.vision.update(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=512,
        image_size=128,
        patch_size=16,
    )
    model.mllm.text.update(
        vocab_size=755,  # bytes, special tokens, toyworld's words and their pieces
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
    )
    model.mllm.image_token_id = 261  # <IMG_CONTEXT>
    model.mllm.tie_word_embeddings = True

    model.dla.update(
        num_states=7,
        states=(0, 7),
        input_dim=128,
        width=128,
        num_heads=4,
        num_kv_heads=4,
        intermediate_size=256,
        context_dim=128,
    )
    model.vae.update(block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=8)
    model.vae.update(shift_factor=0.019, scaling_factor=1.02)  # of the latents of the VAE that is shipped
    model.clip.update(
        vocab_size=751,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=257,
    )
    model.transformer.update(
        num_layers=3,
        num_single_layers=5,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        pooled_projection_dim=64,
        axes_dims_rope=(8, 12, 12),
    )
    model.lora.update(rank=16, alpha=16.0)

    config.prompt.pad_to_multiple = 40  # toyworld's longest prompt
    config.reference.long_side = 128
    config.reference.long_side_multi = 96
    config.sampling.height = 128
    config.sampling.width = 128
    # The paper's 0.95 and 0.85 at 512 pixels: the equivalent timesteps at 128 (diffusion.schedule.equivalent_timestep).
    config.sampling.tau1 = 0.83
    config.sampling.tau2 = 0.59
    # FLUX.1-dev has been distilled from guidance; the tiny transformer, which knows its embedding of 1 alone, has not.
    config.sampling.guidance = 1.0
    config.sampling.text_guidance = 4.0
    config.sampling.reference_guidance = 2.0

    config.compute.remat = False
    config.data.sizes = ((128, 128),)
    config.data.prompt_tokens = 40
    config.train.weights = "tiny"
    config.train.warm_start = True
    config.train.batch_size = 32
    config.train.stage1.update(steps=1200, warmup_steps=50, decay_steps=300)
    config.train.stage2.update(steps=1000, warmup_steps=50, decay_steps=600)
    for stage in (config.train.stage1, config.train.stage2):
        stage.learning_rates = (("dla/.*", 5e-4), (".*/lora_[ab]", 1e-3))
    # Pictures of 64 tokens show what they are at t = 0.7 already; what prompt and reference say is learnt above that.
    config.train.time.update(mean=1.5, std=1.5)
    config.train.ema_decay = 0.99
    config.checkpoint.update(every_steps=100, every_minutes=5.0, keep_every_steps=0)
    config.log.every_steps = 10
    config.evals.loss.update(every_steps=500, examples=64)
    config.evals.samples.update(every_steps=500)

    every = dict(warmup_steps=100, ema_decay=0.995, eval_every_steps=500, start_from="", optimizer="adamw")
    config.pretrain = ConfigDict()
    config.pretrain.vae = ConfigDict(
        dict(
            every,
            steps=3000,
            batch_size=16,
            learning_rate=2e-3,
            decay_steps=1000,
            num_eval_examples=200,
            crop_size=64,  # pixels
            gradient_weight=0.5,
            kl_weight=1e-3,
        )
    )
    config.pretrain.probe = ConfigDict(
        dict(
            every,
            steps=4500,
            batch_size=32,
            learning_rate=2e-3,
            decay_steps=2500,
            eval_every_steps=500,
            num_eval_examples=1000,
            network=dict(  # 0.34 M parameters
                whole=dict(stem=4, widths=(16, 32, 64), blocks=(0, 1, 2)),
                close=dict(stem=2, widths=(32, 64, 96), blocks=(1, 2, 1)),
                cut=64,  # pixels
                span=1.4,
                norm_num_groups=8,
                maps=2,
            ),
            brightness=0.1,
            noise=0.1,
            jitter=0.08,
        )
    )
    config.pretrain.mllm = ConfigDict(
        dict(
            every | dict(optimizer="muon"),
            steps=6000,
            batch_size=64,
            learning_rate=2e-3,
            decay_steps=3000,
            num_eval_examples=100,
            tokens=88,
            task_shares=(0.4, 0.35, 0.25),
            questions=3,
            vision_only_share=0.75,
            auxiliary_weight=3.0,
        )
    )
    config.pretrain.dit = ConfigDict(
        dict(
            every | dict(optimizer="muon"),
            steps=9000,
            batch_size=32,
            learning_rate=2e-3,
            decay_steps=3500,
            ema_decay=0.998,
            eval_every_steps=3000,
            num_eval_examples=32,
            pictures=40_000,
            pose_randomness=0.25,
            subject_weight=4.0,
            drop_subject_with_reference_view=0.5,
            drop_all=0.1,
            drop_subject=0.05,
            drop_scene=0.25,
            eval_sampling_steps=20,
            eval_guidance=4.0,
        )
    )
    config.pretrain.dla = ConfigDict(
        dict(
            every | dict(optimizer="muon"),
            steps=1500,
            batch_size=32,
            learning_rate=1e-3,
            decay_steps=750,
            eval_every_steps=500,
            num_eval_examples=64,
            examples=12_000,
            relations=4,
            tokens=72,
        )
    )
    if variant == "full":
        # A full caption leaves nothing open: the picture is known from pure noise on, and what captions that say little
        # of a pose teach of shapes only at little noise is learnt here at once. Mixed captions come after.
        config.pretrain.dit.update(decay_steps=1000, drop_scene=0.05, drop_subject=0.02, drop_all=0.05)
        config.train.time.update(mean=3.0, std=1.2)
    elif variant == "short":
        config.data.update(examples=8000, cached_features="all")  # with data.cache encoded once, for every run
        config.train.stage1.update(steps=80, decay_steps=30)
        config.train.stage2.update(steps=200, decay_steps=150)
        for stage in (config.train.stage1, config.train.stage2):
            stage.learning_rates = (("dla/.*", 2e-4), (".*/lora_[ab]", 1e-3))
        config.evals.loss.every_steps = 400
        config.evals.samples.every_steps = 0
    elif variant:
        raise ValueError(f"unknown variant {variant!r}; known: full, short")
    return config
