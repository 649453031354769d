"""Accumulated gradients against one pass over everything, dropout on, in one process and in two."""

import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from clipgraft.stages.finetune import start_bias
from clipgraft.training.accumulation import average_over_processes, backward_jointly, backward_separately
from clipgraft.training.objectives import ContrastiveObjective
from clipgraft.training.random_states import seed_step
from tiny import fit
from two_processes import run_in_two_processes


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


def test_joint_gradient_is_not_that_of_separate_micro_batches(accelerator):
    batches = micro_batches((4, 4))
    joint, separate = TwoTowers().eval(), TwoTowers().eval()
    backward_jointly(joint, batches, accelerator)
    metrics = backward_separately(separate, batches, accelerator)
    assert metrics["loss"].item() == pytest.approx(sum(separate(b)[0].item() for b in batches) / 2)
    assert not torch.allclose(gradients(joint)["logit_scale"], gradients(separate)["logit_scale"])


@pytest.mark.parametrize("accumulation", ["separate", "joint"])
def test_step_of_a_training_is_by_the_accumulation_that_was_asked_for(tmp_path, accumulation, accelerator):
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


def clip_batches(clip, num_batches):
    """Micro-batches of four images with two captions each, the first image shown again in the second."""
    generator = torch.Generator().manual_seed(1)
    size = tiny.IMAGE_SIZE
    batches = []
    for index in range(num_batches):
        images = torch.arange(4) + 4 * index
        batches.append(
            {
                "clip_pixel_values": torch.randn(4, 3, size, size, generator=generator),
                "input_ids": torch.randint(10, 200, (8, 12), generator=generator),
                "image_index": images,
                "caption_image": images.repeat_interleave(2),
                "image_content": torch.where(images == 4, 0, images),
            }
        )
        batches[-1]["input_ids"][:, -1] = clip.tokenizer.eos_token_id
    return batches


def clip_objective(loss="softmax"):
    clip = tiny.build_clip()
    return clip, ContrastiveObjective(clip.model, loss=loss).train()


def together(first, second):
    return {key: torch.cat([first[key], second[key]]) for key in first}


def test_joint_gradient_of_clip_is_that_of_one_batch(accelerator):
    clip, objective = clip_objective()
    batches = clip_batches(clip, 3)
    whole = {key: torch.cat([batch[key] for batch in batches]) for key in batches[0]}
    objective(whole)[0].backward()
    expected = gradients(objective)
    objective.zero_grad()
    backward_jointly(objective, batches, accelerator)
    torch.testing.assert_close(gradients(objective), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("batches_each", [1, 2])
def test_two_processes_give_the_gradient_of_one(accelerator, one_thread, tmp_path, batches_each):
    clip, objective = clip_objective()
    batches = clip_batches(clip, 2 * batches_each)
    backward_jointly(objective, batches, accelerator)
    joint = gradients(objective)
    objective.zero_grad()
    backward_separately(objective, [*map(together, batches[::2], batches[1::2])], accelerator)
    sigmoid = clip_objective("sigmoid")[1]
    start_bias(sigmoid, together(*batches[:2]))
    run_in_two_processes(__file__, tmp_path, batches_each)
    for rank in range(2):
        found = load_file(tmp_path / f"{rank}.joint.safetensors")
        torch.testing.assert_close(found, joint, rtol=1e-4, atol=1e-6)
        found = load_file(tmp_path / f"{rank}.separate.safetensors")
        torch.testing.assert_close(found, gradients(objective), rtol=1e-4, atol=1e-6)
        found = load_file(tmp_path / f"{rank}.bias.safetensors")["logit_bias"]
        torch.testing.assert_close(found, sigmoid.logit_bias.detach(), rtol=1e-5, atol=1e-5)
        assert torch.equal(found, load_file(tmp_path / "0.bias.safetensors")["logit_bias"])


def save_gradients_of_this_process(folder: Path, batches_each: int) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    assert accelerator.num_processes == 2
    clip, objective = clip_objective()
    # Micro-batch k of both processes together is a piece of the one batch; the loss asks for no order.
    own = clip_batches(clip, 2 * batches_each)[accelerator.process_index :: 2]
    rank = accelerator.process_index
    for name, backward in (("joint", backward_jointly), ("separate", backward_separately)):
        backward(objective, own, accelerator)
        average_over_processes(list(objective.parameters()), accelerator)
        save_file(gradients(objective), folder / f"{rank}.{name}.safetensors")
        objective.zero_grad()
    sigmoid = clip_objective("sigmoid")[1]
    start_bias(sigmoid, own[0])
    save_file({"logit_bias": sigmoid.logit_bias.detach()}, folder / f"{rank}.bias.safetensors")
    accelerator.end_training()


if __name__ == "__main__":
    save_gradients_of_this_process(Path(sys.argv[1]), int(sys.argv[2]))
