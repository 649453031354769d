"""VAEs of the user's own: every layout in which they are published, and what is refused."""

import json

import pytest
import torch
from diffusers import AsymmetricAutoencoderKL, AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

import tiny
from clipgraft.errors import CheckpointError, MissingFileError
from clipgraft.models import flatland_config
from clipgraft.models.ldm_names import to_ldm
from clipgraft.models.single_file import VAE_CONFIG, VAE_PREFIX
from clipgraft.models.vae import load_vae
from clipgraft.section import PIXELS_PER_LATENT
from vae_world import fine_tuned, taesd_decoder, taesd_encoder, tiny_vae

STEM = "diffusion_pytorch_model.safetensors"
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.mark.parametrize("build", [lambda: AutoencoderKL.from_config(VAE_CONFIG), flatland_config.build_vae])
def test_a_latent_stands_for_as_many_pixels(build):
    side = 8 * PIXELS_PER_LATENT
    with torch.device("meta"):
        latents = build().encode(torch.zeros(1, 3, side, side)).latent_dist.mean
    assert latents.shape == (1, 4, 8, 8)


@pytest.fixture(scope="module")
def base_vae():
    return tiny.build_pipeline().vae.eval()


@pytest.fixture(scope="module")
def tuned(base_vae):
    return fine_tuned(base_vae)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tuned):
    """One VAE in every layout, and TAESD."""
    folder = tmp_path_factory.mktemp("vaes")
    tuned.save_pretrained(folder / "kl")
    tuned.save_pretrained(folder / "base" / "vae")
    (folder / "base" / "model_index.json").write_text("{}")
    own = load_file(folder / "kl" / STEM)
    ldm = to_ldm("vae", own, dict(tuned.config))
    bare = {name.removeprefix(VAE_PREFIX): weight.contiguous() for name, weight in ldm.items()}
    save_file(bare, folder / "ldm.safetensors")
    training = {"loss.logvar": torch.zeros(1), "loss.discriminator.steps": torch.ones(1, dtype=torch.int64)}
    save_file(bare | training | {"model_ema.decay": torch.ones(1)}, folder / "trained.safetensors")
    prefixed = {name: weight.contiguous() for name, weight in ldm.items()}
    save_file(prefixed, folder / "prefixed.safetensors")
    others = {"model.diffusion_model.out.2.bias": torch.zeros(4), "model_ema.decay": torch.ones(1)}
    save_file(prefixed | others, folder / "checkpoint.safetensors")
    older = dict(own)
    for name in own:
        for new, old in OLD_ATTENTION.items():
            if f".{new}." in name:
                older[name.replace(new, old)] = older.pop(name)
    save_file(older, folder / "older.safetensors")
    save_file(taesd_encoder().state_dict(), folder / "taesd_encoder.safetensors")
    save_file(taesd_decoder().state_dict(), folder / "taesd_decoder.safetensors")
    save_file(taesd_decoder().state_dict(), folder / "alone_decoder.safetensors")
    tiny_vae().save_pretrained(folder / "tiny")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "kl",
        f"kl/{STEM}",
        "base",
        *(f"{name}.safetensors" for name in ("ldm", "trained", "prefixed", "older")),
    ],
)
def test_every_layout_gives_the_same_vae(base_vae, tuned, folder, name):
    loaded = load_vae(str(folder / name), base_vae)
    expected = tuned.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in loaded.state_dict().items())
    assert loaded.config.scaling_factor == base_vae.config.scaling_factor
    assert not loaded.training


def test_a_whole_checkpoint_gives_its_vae(base_vae, tuned, folder):
    loaded = load_vae(str(folder / "checkpoint.safetensors"), base_vae)
    latents = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.decode(latents).sample, tuned.decode(latents).sample)


@pytest.mark.parametrize("name", ["taesd_decoder.safetensors", "tiny", f"tiny/{STEM}"])
def test_taesd_gives_its_authors_pixels_and_latents(base_vae, folder, name):
    loaded = load_vae(str(folder / name), base_vae)
    latents, pixels = torch.randn(2, 4, 8, 8), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        decoded, encoded = loaded.decode(latents).sample, loaded.encode(2 * pixels - 1).latents
        assert torch.allclose(decoded, 2 * taesd_decoder()(latents) - 1, atol=1e-5)
        assert torch.allclose(encoded, taesd_encoder()(pixels), atol=1e-6)
    assert (loaded.config.scaling_factor, loaded.config.latent_channels) == (1, 4)


def test_taesd_in_its_own_names_equals_diffusers(base_vae, folder):
    ours = load_vae(str(folder / "taesd_decoder.safetensors"), base_vae).state_dict()
    theirs = AutoencoderTiny.from_pretrained(folder / "tiny").state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_taesd_decoder_alone_keeps_the_bases_encoder(base_vae, folder):
    before = {name: weight.clone() for name, weight in base_vae.state_dict().items()}
    loaded = load_vae(str(folder / "alone_decoder.safetensors"), base_vae)
    latents, pixels = torch.randn(2, 4, 8, 8), torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        decoded = loaded.decode(latents / loaded.config.scaling_factor).sample
        assert torch.allclose(decoded, 2 * taesd_decoder()(latents) - 1, atol=1e-5)
        mean, expected = (vae.encode(pixels).latent_dist.mean for vae in (loaded, base_vae))
    assert torch.equal(mean, expected)
    assert all(torch.equal(weight, before[name]) for name, weight in base_vae.state_dict().items())


@pytest.mark.parametrize("name", ["kl", "ldm.safetensors", "tiny", "alone_decoder.safetensors"])
def test_a_vae_has_the_dtype_of_the_bases_own(folder, name):
    loaded = load_vae(str(folder / name), tiny.build_pipeline().vae.half())
    assert {weight.dtype for weight in loaded.state_dict().values()} == {torch.float16}


def test_flatlands_vae_is_for_its_own_latents(base_vae):
    with pytest.raises(CheckpointError, match=r"its scaling_factor is 0\.27.*, this base's 0\.18215"):
        load_vae("flatland", base_vae)


def written(folder, **changes):
    """A VAE's folder of the tiny base's shape, but for changes."""
    own = tiny.build_pipeline().vae.config
    config = {key: value for key, value in own.items() if not key.startswith("_")} | changes
    AutoencoderKL.from_config(config).save_pretrained(folder)
    return folder


def without(path, folder, *names, name="vae.safetensors", **more):
    weights = {key: weight for key, weight in load_file(path).items() if key not in names}
    save_file(weights | more, folder / name)
    return folder / name


def tiny_config(folder, **changes):
    """A tiny VAE's folder with another configuration."""
    tiny_vae().save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def saved(path, weights):
    save_file(weights, path)
    return path


REFUSED = {
    "16 channels in a folder": (
        lambda at, _: written(at / "vae", latent_channels=16),
        "is for another base: its latent_channels is 16, this base's 4; name one that was made for this base",
    ),
    "16 channels in a file": (
        lambda at, _: written(at / "vae", latent_channels=16) / STEM,
        "is for another base: its latent_channels is 16, this base's 4",
    ),
    "16 channels of TAESD": (
        lambda at, _: saved(at / "taesd3_decoder.safetensors", taesd_decoder(16).state_dict()),
        "is for another base: its latent_channels is 16, this base's 4",
    ),
    "another scale": (
        lambda at, _: written(
            at / "vae",
            block_out_channels=[8, 8, 8],
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
        ),
        "is for another base: its pixels per latent position is 4, this base's 8",
    ),
    "four channels of pixels": (
        lambda at, _: written(at / "vae", out_channels=4),
        "is for another base: its out_channels is 4, this base's 3",
    ),
    "SDXL's scaling factor": (
        lambda at, _: written(at / "vae", scaling_factor=0.13025),
        "is for another base: its scaling_factor is 0.13025, this base's 0.18215",
    ),
    "trained anew": (
        lambda at, _: written(at / "vae") / STEM,
        f"{STEM} is for other latents: its encoder's weights have a cosine of ",
    ),
    "TAESDXL": (
        lambda at, vaes: without(vaes / "taesd_decoder.safetensors", at, name="taesdxl_decoder.safetensors"),
        "taesdxl_decoder.safetensors is for SDXL; name one that was made for this base, such as TAESD",
    ),
    "a LoRA": (
        lambda at, _: saved(at / "lora.safetensors", {"lora_unet_mid.lora_up.weight": torch.zeros(1)}),
        "lora.safetensors holds no VAE; name an AutoencoderKL with LDM's or diffusers' names, an "
        "AutoencoderTiny, or taesd_decoder.safetensors",
    ),
    "a U-Net in one file": (
        lambda at, _: saved(at / "unet.safetensors", tiny.build_pipeline().unet.state_dict()),
        "unet.safetensors holds no VAE; name an AutoencoderKL",
    ),
    "a U-Net's folder": (
        lambda at, _: tiny.build_pipeline().unet.save_pretrained(at / "unet") or at / "unet",
        "config.json names the class UNet2DConditionModel, which is no VAE that can be used; name",
    ),
    "a VAE of another class": (
        lambda at, _: AsymmetricAutoencoderKL(norm_num_groups=4).save_pretrained(at / "vae") or at / "vae",
        "config.json names the class AsymmetricAutoencoderKL, which is no VAE that can be used; name",
    ),
    "TAESD's encoder": (
        lambda _, vaes: vaes / "taesd_encoder.safetensors",
        "taesd_encoder.safetensors holds no decoder; name an AutoencoderKL",
    ),
    "no TAESD beside it": (
        lambda at, vaes: (
            saved(at / "taesd_encoder.safetensors", {"1.weight": torch.zeros(1)})
            and without(vaes / "taesd_decoder.safetensors", at, name="taesd_decoder.safetensors")
        ),
        "taesd_encoder.safetensors lacks",
    ),
    "a decoder without a layer": (
        lambda at, vaes: without(vaes / "taesd_decoder.safetensors", at, "12.weight"),
        "vae.safetensors lacks 1 weights: layers.11.weight; it is of another model: name the right one",
    ),
    "a VAE without a weight": (
        lambda at, vaes: without(vaes / "ldm.safetensors", at, "decoder.conv_out.bias"),
        "vae.safetensors lacks 1 weights: decoder.conv_out.bias; it is of another model",
    ),
    "a VAE of other widths": (
        lambda at, _: written(at / "vae", block_out_channels=[8, 8, 8, 16]) / STEM,
        "is of another model",
    ),
    "a VAE of videos": (
        lambda at, vaes: without(
            vaes / "ldm.safetensors", at, **{"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3, 3)}
        ),
        "is of another model: decoder.conv_in.weight has shape (8, 4, 3, 3, 3), not (8, 4, 3, 3)",
    ),
    "TAESD of numbers without rows": (
        lambda at, vaes: without(vaes / "taesd_decoder.safetensors", at, **{"1.weight": torch.zeros(64)}),
        "is of another model: layers.0.weight has shape (64,), not (64, 4, 3, 3)",
    ),
    "a weight that is not finite": (
        lambda at, vaes: without(
            vaes / "taesd_decoder.safetensors", at, "18.bias", **{"19.bias": torch.full((3,), torch.nan)}
        ),
        "19.bias holds NaN or infinity; it is damaged",
    ),
    "several widths": (
        lambda at, _: tiny_config(at / "tiny", decoder_block_out_channels=[64, 64, 64, 32]),
        "the blocks of a tiny VAE must have one width",
    ),
    "code": (
        lambda at, _: tiny_config(at / "tiny", auto_map={"AutoModel": "x.py"}),
        "auto_map is refused",
    ),
    "no configuration": (
        lambda at, vaes: without(vaes / "ldm.safetensors", at).parent,
        "is no VAE: it has no config.json; name an AutoencoderKL",
    ),
    "a damaged file": (
        lambda at, _: (at / "vae.safetensors").write_bytes(b"no weights") and at / "vae.safetensors",
        "vae.safetensors is damaged or no safetensors file",
    ),
    "another ending": (
        lambda at, _: (at / "vae.png").write_bytes(b"") or at / "vae.png",
        "vae.png is not a .safetensors file; name an AutoencoderKL",
    ),
    "a pickle": (
        lambda at, _: at / "vae-ft-mse-840000-ema-pruned.vae.pt",
        "is pickled, and may run code when opened; take the VAE as a .safetensors file",
    ),
    "a folder of pickles": (
        lambda at, _: (at / "model.bin").write_bytes(b"") or at,
        "holds pickled weights alone (model.bin), which can run code when opened",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_vae_of_this_base_is_refused(base_vae, folder, tmp_path, what):
    make, message = REFUSED[what]
    path = make(tmp_path, folder)
    with pytest.raises(CheckpointError) as error:
        load_vae(str(path), base_vae)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["vae.safetensors", "no/such/vae.safetensors", "no/such/folder"])
def test_an_absent_vae_is_refused(base_vae, tmp_path, name):
    with pytest.raises(MissingFileError, match=r"no (VAE|model) at .*; (name|give) a"):
        load_vae(str(tmp_path / name), base_vae)


def test_a_link_out_of_a_vaes_folder_is_refused(base_vae, folder, tmp_path):
    (tmp_path / "vae").mkdir()
    for name in ("config.json", STEM):
        (tmp_path / "vae" / name).symlink_to(folder / "kl" / name)
    with pytest.raises(CheckpointError, match=r"is a link to .*, out of the model's folder"):
        load_vae(str(tmp_path / "vae"), base_vae)
