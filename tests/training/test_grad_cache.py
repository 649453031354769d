"""Accumulated gradients against one pass over everything, dropout on."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from clipgraft.models.bridge import Bridge
from clipgraft.training.grad_cache import backward_jointly, backward_separately
from clipgraft.training.objectives import BridgeObjective
from clipgraft.training.step import seed_step
from tiny import fit


class TwoTowers(nn.Module):
    """Two towers with dropout and a logit scale, in float64; the loss is CLIP's, written out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(5, 16), nn.Dropout(0.3), nn.GELU(), nn.Linear(16, 8))
        self.text = nn.Sequential(nn.Linear(7, 16), nn.Dropout(0.3), nn.GELU(), nn.Linear(16, 8))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))
        self.double()

    def embed(self, batch):
        image, text = self.image(batch["image"]), self.text(batch["text"])
        return {
            "image_embeds": nn.functional.normalize(image, dim=-1),
            "text_embeds": nn.functional.normalize(text, dim=-1),
        }

    def joint_loss(self, embeds):
        logits = self.logit_scale.exp() * embeds["text_embeds"] @ embeds["image_embeds"].T
        target = torch.arange(len(logits))
        loss = nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)
        return loss / 2, {}

    def forward(self, batch):
        return self.joint_loss(self.embed(batch))


class TowersApart(TwoTowers):
    """The same, embedded tower by tower; notes which gradients are there when texts are embedded."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def embed_parts(self, batch):
        yield {"image_embeds": nn.functional.normalize(self.image(batch["image"]), dim=-1)}
        gradient = self.image[0].weight.grad
        self.seen.append(None if gradient is None else gradient.clone())
        yield {"text_embeds": nn.functional.normalize(self.text(batch["text"]), dim=-1)}


def micro_batches(sizes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "image": torch.randn(size, 5, generator=generator, dtype=dtype),
            "text": torch.randn(size, 7, generator=generator, dtype=dtype),
        }
        for size in sizes
    ]


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(cpu=True, mixed_precision="no")


def gradients(module):
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 4, 1), (6,)])
def test_joint_gradient_is_that_of_one_pass_for_every_parameter(accelerator, sizes):
    batches = micro_batches(sizes)
    once = TwoTowers()
    torch.manual_seed(9)
    parts = [once.embed(batch) for batch in batches]  # one graph over all, the same dropout masks
    loss, _ = once.joint_loss({name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    loss.backward()
    ours = TwoTowers()
    torch.manual_seed(9)
    metrics = backward_jointly(ours, batches, accelerator)
    assert gradients(ours).keys() == dict(ours.named_parameters()).keys()
    assert "logit_scale" in gradients(ours)
    torch.testing.assert_close(gradients(ours), gradients(once), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(metrics["loss"], loss.detach())


def test_towers_backpropagate_one_after_the_other(accelerator):
    batches = micro_batches((4, 4))
    whole, apart = TwoTowers(), TowersApart()
    for objective in (whole, apart):
        torch.manual_seed(9)
        backward_jointly(objective, batches, accelerator)
    assert torch.equal(apart.seen[1], whole.image[0].weight.grad)
    assert apart.seen[0].norm() > 0
    for name, gradient in gradients(whole).items():
        assert torch.equal(gradients(apart)[name], gradient)


def test_joint_gradient_is_not_that_of_separate_micro_batches(accelerator):
    batches = micro_batches((4, 4))
    joint, separate = TwoTowers().eval(), TwoTowers().eval()
    backward_jointly(joint, batches, accelerator)
    metrics = backward_separately(separate, batches, accelerator)
    assert metrics["loss"].item() == pytest.approx(sum(separate(b)[0].item() for b in batches) / 2)
    assert not torch.allclose(gradients(joint)["logit_scale"], gradients(separate)["logit_scale"])


@pytest.mark.parametrize("accumulation", ["separate", "joint"])
def test_training_uses_the_accumulation_of_its_settings(tmp_path, accumulation, accelerator):
    batches = micro_batches((4, 4), torch.float32)

    class TwoBatches:
        def __len__(self):
            return 2

        def epoch(self, epoch, start):
            return batches[start:]

    ours, plain = TwoTowers().float(), TwoTowers().float()
    options = {"num_epochs": 1, "learning_rate": 0.1, "weight_decay": 0.0, "max_grad_norm": 1e9}
    fit(
        ours,
        TwoBatches(),
        run_dir=tmp_path,
        seed=9,
        gradient_accumulation_steps=2,
        accumulation=accumulation,
        **options,
    )
    seed_step(9, 0, 0)
    if accumulation == "separate":
        (sum(plain(batch)[0] for batch in batches) / 2).backward()
    else:
        parts = [plain.embed(batch) for batch in batches]
        plain.joint_loss({name: torch.cat([part[name] for part in parts]) for name in parts[0]})[0].backward()
    torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.0).step()
    torch.testing.assert_close(dict(ours.named_parameters()), dict(plain.named_parameters()))


def test_random_state_after_a_joint_step_is_that_of_one_pass(accelerator):
    batches, objective = micro_batches((4, 4)), TwoTowers()
    torch.manual_seed(5)
    for batch in batches:
        objective.embed(batch)
    expected = torch.rand(3)
    torch.manual_seed(5)
    backward_jointly(objective, batches, accelerator)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("has_keys", [False, True])
def test_bridges_gradient_of_several_passes_is_that_of_one(accelerator, has_keys):
    torch.manual_seed(2)
    root = torch.randn(6, 6) if has_keys else None
    bridge = Bridge(5, 6, hidden_size=8, num_maps=3, num_positions=9)
    nn.init.normal_(bridge.residual[-1].weight)
    objective = BridgeObjective(bridge, norm_weight=0.1, kv_metric_sqrt=root, key_value_weight=0.5)
    lengths = torch.tensor(
        [9, 8, 3, 2, 2, 1]
    )  # in batches of captions of about one length: 17, 5 and 3 states
    is_there = torch.arange(9) < lengths[:, None]
    whole = {
        "student": torch.randn(6, 9, 5),
        "teacher": torch.randn(6, 9, 6) * lengths[:, None, None],
        "classes": torch.where(is_there, 1, 3),
        "positions": torch.arange(9).expand(6, 9),
        "weights": is_there.float(),
    }
    parts = [
        {name: tensor[rows, : lengths[rows].max()] for name, tensor in whole.items()}
        for rows in torch.arange(6).split(2)
    ]
    loss, _ = objective(whole)
    loss.backward()
    expected = gradients(objective)
    objective.zero_grad()
    metrics = backward_jointly(objective, parts, accelerator)
    torch.testing.assert_close(metrics["loss"], loss.detach())
    torch.testing.assert_close(gradients(objective), expected, rtol=1e-4, atol=1e-6)
