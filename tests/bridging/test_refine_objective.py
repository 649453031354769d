"""Refining a graft through a frozen U-Net: what is trained, what is left alone, and by which error."""

import pytest
import torch
from torch.nn import functional as F

import tiny
from clipgraft.bridging.refine_objective import RefineObjective, add_noise, block_outputs, sample_timesteps
from clipgraft.data.batches import LatentBatches
from clipgraft.data.transforms import encode_captions, tokenize
from clipgraft.models.bridge import NUM_CLASS_MAPS, Bridge
from clipgraft.models.graft import GraftedTextEncoder
from clipgraft.models.weights import module_sha256
from clipgraft.settings import RefineSettings
from clipgraft.training.optim import merge_lora, train_bridge_and_last_layers
from tiny import fit


@pytest.fixture
def base():
    return tiny.build_base()


@pytest.fixture
def encoder(base):
    clip = tiny.build_clip()
    torch.manual_seed(3)
    bridge = Bridge(tiny.TEXT_WIDTH, tiny.TEACHER_WIDTH, 16, num_maps=NUM_CLASS_MAPS, num_positions=77)
    grafted = GraftedTextEncoder.graft(
        clip.model.text_model, bridge, base.empty_prompt_embeds(), base.tokenizer.eos_token_id
    )
    train_bridge_and_last_layers(grafted, 0, 0)
    return grafted


@pytest.fixture
def batch(base):
    torch.manual_seed(4)
    ids = tokenize(tiny.CAPTIONS, base.tokenizer, pad_to_context_length=True)
    return {"latents": torch.randn(5, 4, 8, 8), "input_ids": ids}


def objective_of(base, encoder, **options):
    empty = tokenize([""], base.tokenizer, pad_to_context_length=True)[0]
    alphas = base.scheduler.alphas_cumprod
    settings = RefineSettings().model_copy(update={"caption_drop": 0.0, **options})  # also beyond its bounds
    models = encoder, base.unet, base.text_encoder
    return RefineObjective(*models, settings, alphas_cumprod=alphas, empty_input_ids=empty)


def run(objective, batch, seed=0):
    torch.manual_seed(seed)
    return objective(batch)


def test_refining_leaves_base_and_tower_as_they_were(base, encoder, batch, tmp_path):
    frozen = {**base.modules, "text_model": encoder.text_model}
    before = {name: module_sha256(module) for name, module in frozen.items()}
    bridge = module_sha256(encoder.bridge)
    batches = LatentBatches(
        batch["latents"],
        [encode_captions([text], base.tokenizer)[0] for text in tiny.CAPTIONS],
        eos_token_id=base.tokenizer.eos_token_id,
        context_length=77,
        batch_size=5,
        seed=0,
        num_epochs=3,
    )
    fit(
        objective_of(base, encoder),
        batches,
        run_dir=tmp_path,
        num_epochs=3,
        learning_rate=1e-2,
    )
    assert {name: module_sha256(module) for name, module in frozen.items()} == before
    assert module_sha256(encoder.bridge) != bridge


def test_gradients_equal_those_of_a_plain_float64_reference(base, encoder, batch):
    for module in (*base.modules.values(), encoder):
        module.double()
    objective = objective_of(base, encoder)
    objective.alphas_cumprod = objective.alphas_cumprod.double()
    objective._predict = lambda noisy, t, states: base.unet(noisy.double(), t, states.double()).sample
    loss, _ = run(objective, batch)
    loss.backward()
    found = {name: p.grad.clone() for name, p in encoder.bridge.named_parameters()}
    encoder.zero_grad()
    reference(base, encoder, batch).backward()
    for name, parameter in encoder.bridge.named_parameters():
        difference = (found[name] - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-30)
        assert difference < 1e-6, name


def reference(base, encoder, batch):
    """The formula written out: PEA-Diffusion's three terms with its weights, features relative."""
    torch.manual_seed(0)
    torch.rand(5, 1)
    timesteps = torch.randint(1000, (5,))
    noise = torch.randn_like(batch["latents"])
    noisy = base.scheduler.add_noise(batch["latents"], noise, timesteps).double()
    ids, kept = batch["input_ids"], []
    for states in (encoder(ids).last_hidden_state, base.text_encoder(ids).last_hidden_state.detach()):
        with block_outputs(base.unet) as features:
            kept.append([base.unet(noisy, timesteps, states).sample, *features])
    (ours, *our_features), (theirs, *their_features) = kept
    loss = F.mse_loss(ours, noise.double()) + F.mse_loss(ours, theirs)
    for a, b in zip(our_features, their_features, strict=True):
        rows = [(x - y).square().mean() / y.square().mean() for x, y in zip(a, b, strict=True)]
        loss = loss + 0.1 * torch.stack(rows).mean()
    return loss


def test_every_block_of_the_u_net_gives_its_output_once(base):
    with block_outputs(base.unet) as features:
        base.unet(torch.randn(2, 4, 8, 8), 5, torch.randn(2, 77, tiny.TEACHER_WIDTH))
    assert [tuple(feature.shape) for feature in features] == [
        (2, 8, 4, 4),  # down
        (2, 16, 4, 4),
        (2, 16, 4, 4),  # middle
        (2, 16, 8, 8),  # up
        (2, 8, 8, 8),
    ]


def test_dropped_captions_teach_nothing(base, encoder, batch):
    loss, metrics = run(objective_of(base, encoder, caption_drop=1.0), batch)
    assert metrics["teacher_error"].item() == pytest.approx(0, abs=1e-12)  # rounding between batch sizes
    assert metrics["feature_error"].item() == pytest.approx(0, abs=1e-10)
    assert not loss.requires_grad or all(
        grad is None or not grad.any()
        for grad in torch.autograd.grad(loss, list(encoder.bridge.parameters()), allow_unused=True)
    )


@pytest.mark.parametrize("name", ["noise", "teacher", "feature"])
def test_each_weight_switches_its_error(base, encoder, batch, name):
    weights = {f"{other}_weight": 0.0 for other in ("noise", "teacher", "feature")}
    loss, metrics = run(objective_of(base, encoder, **{**weights, f"{name}_weight": 2.0}), batch)
    assert loss.item() == pytest.approx(2 * metrics[f"{name}_error"].item(), rel=1e-5)
    without, few = run(objective_of(base, encoder, **{**weights, "noise_weight": 1.0}), batch)
    assert set(few) == {"noise_error"}
    assert torch.isfinite(without)


def test_timesteps_weigh_by_their_capped_signal_to_noise_ratio(base, encoder, batch):
    """min-SNR of noise prediction, min(SNR, gamma) / SNR, with the noise and timesteps that were drawn."""
    one = {name: value[:1] for name, value in batch.items()}
    plain, _ = run(objective_of(base, encoder), one)
    torch.manual_seed(0)
    torch.rand(1, 1)
    alpha = base.scheduler.alphas_cumprod[torch.randint(1000, (1,)).item()].item()
    ratio = alpha / (1 - alpha)
    for gamma in (2 * ratio, 0.5 * ratio):
        loss, _ = run(objective_of(base, encoder, snr_gamma=gamma), one)
        assert (loss / plain).item() == pytest.approx(min(ratio, gamma) / ratio, rel=1e-4)


def test_the_objective_draws_timesteps_as_it_is_told(base, encoder, batch):
    told = []
    for sampling in ("uniform", "high_noise"):
        objective = objective_of(
            base, encoder, timestep_sampling=sampling, teacher_weight=0, feature_weight=0
        )
        handle = base.unet.register_forward_pre_hook(lambda _module, inputs: told.append(inputs[1]))
        run(objective, batch)
        handle.remove()
        torch.manual_seed(0)
        torch.rand(5, 1)
        assert torch.equal(told[-1], sample_timesteps(5, 1000, sampling, torch.device("cpu")))
    assert not torch.equal(*told)


def test_the_teachers_weight_falls_to_its_end(base, encoder, batch):
    def loss_at(progress):
        objective = objective_of(base, encoder, teacher_end=0.5, feature_weight=0.0)
        return run(objective, {**batch, "progress": torch.tensor([progress])})

    (first, metrics), (last, _) = loss_at(0.0), loss_at(1.0)
    assert (first - last).item() == pytest.approx(0.5 * metrics["teacher_error"].item(), rel=1e-3)


def test_a_teacher_whose_weight_is_gone_is_not_asked(base, encoder, batch):
    objective = objective_of(base, encoder, teacher_end=0.0)
    _, metrics = run(objective, {**batch, "progress": torch.tensor([1.0])})
    assert set(metrics) == {"noise_error"}


def test_progress_is_a_function_of_the_batchs_place(base):
    ids = [encode_captions([text], base.tokenizer)[0] for text in tiny.CAPTIONS[:4]]
    latents, sizes = torch.zeros(4, 4, 2, 2), {"context_length": 77, "batch_size": 1}
    batches = LatentBatches(latents, ids, eos_token_id=1, **sizes, seed=0, num_epochs=2)
    told = [[batch["progress"].item() for batch in batches.epoch(epoch, 0)] for epoch in (0, 1)]
    assert told == [[0.0, 0.125, 0.25, 0.375], [0.5, 0.625, 0.75, 0.875]]
    assert [batch["progress"].item() for batch in batches.epoch(1, 3)] == [0.875]


def test_noise_is_added_as_the_scheduler_does(base):
    latents, noise, timesteps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0, 500, 999])
    found = add_noise(latents, noise, base.scheduler.alphas_cumprod, timesteps)
    torch.testing.assert_close(found, base.scheduler.add_noise(latents, noise, timesteps))


def test_timesteps_are_drawn_as_named():
    torch.manual_seed(0)
    uniform = sample_timesteps(20_000, 1000, "uniform", torch.device("cpu"))
    high = sample_timesteps(20_000, 1000, "high_noise", torch.device("cpu"))
    assert uniform.float().mean().item() == pytest.approx(499.5, rel=0.02)
    assert high.float().mean().item() == pytest.approx(666, rel=0.02)  # of a density 2 t: two thirds
    assert high.min() >= 0
    assert high.max() <= 999


def test_gradient_checkpointing_gives_the_same_gradients(base, encoder, batch):
    objective = objective_of(base, encoder)
    grads = []
    for switch in (base.unet.disable_gradient_checkpointing, base.unet.enable_gradient_checkpointing):
        switch()
        encoder.zero_grad()
        run(objective, batch)[0].backward()
        grads.append(encoder.bridge.linear.weight.grad.clone())
    torch.testing.assert_close(*grads)


def test_last_text_layers_are_trained_and_no_others(encoder):
    train_bridge_and_last_layers(encoder, 1, 0)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"bridge", "text_model"}
    layers = {name for name in trained if "encoder.layers" in name}
    assert layers
    assert all(name.startswith("text_model.encoder.layers.1.") for name in layers)


def test_low_rank_updates_of_the_last_layers_merge(encoder):
    ids = torch.randint(3, 90, (2, 9))
    train_bridge_and_last_layers(encoder, 1, 2)
    trained = {name for name, p in encoder.text_model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name and "layers.1." in name for name in trained)
    with torch.no_grad():
        for name, parameter in encoder.text_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    before = encoder.text_model(ids).last_hidden_state
    merge_lora(encoder)
    assert not any("lora" in name for name, _ in encoder.named_parameters())
    torch.testing.assert_close(encoder.text_model(ids).last_hidden_state, before)


def test_more_text_layers_than_there_are_is_refused(encoder):
    with pytest.raises(ValueError, match="text_layers must be between 0 and the tower's 2; got 3"):
        train_bridge_and_last_layers(encoder, 3, 0)
