"""DiffLMM's diffusion features: the UNet cut off after its block and each image encoded once, against the usual way.

The usual way, which is the original's, encodes every image once per noise and runs all four up blocks of the UNet.

python -m benchmarks.diffusion_features [--images 2] [--ensemble 4]
"""

import argparse
from collections.abc import Iterator

import torch

from benchmarks.measurement import Measurement, positive_count, print_table
from benchmarks.midsize import seconds
from reasonseg.modeling.configuration_difflmm import DiffLmmConfig
from reasonseg.modeling.modeling_difflmm import DiffusionFeatures, diffusers_classes, draw_noise


UNET = {"block_out_channels": [64, 128, 256, 256], "cross_attention_dim": 128, "attention_head_dim": 4}
VAE = {"block_out_channels": [32, 64, 128, 128], "layers_per_block": 1}
SMALL = {"images": 1, "ensemble": 2}


def measurements(images: int = 2, ensemble: int = 4) -> Iterator[Measurement]:
    config = DiffLmmConfig(unet_config=UNET, vae_config=VAE, ensemble_size=ensemble)
    torch.manual_seed(0)
    unet_class, vae_class, _ = diffusers_classes()
    unet, vae = unet_class.from_config(config.unet_config).eval(), vae_class.from_config(config.vae_config).eval()
    features = DiffusionFeatures(config).eval()
    features.unet.load_state_dict(unet.state_dict(), strict=False)
    features.vae.load_state_dict(vae.state_dict(), strict=False)
    pixels = torch.randn(images, 3, config.image_size, config.image_size)
    prompt = torch.randn(images, config.image_seq_length, UNET["cross_attention_dim"])
    noise = draw_noise(config, images)
    caught = []
    unet.up_blocks[config.diffusion_block].register_forward_hook(lambda module, inputs, output: caught.append(output))

    def usual() -> torch.Tensor:
        distribution = vae.encode(pixels.repeat(ensemble, 1, 1, 1)).latent_dist
        latents = (distribution.mean + distribution.std * noise[0]) * vae.config.scaling_factor
        noisy = features.add_noise(latents, noise[1]).contiguous()
        unet(noisy, config.timestep, encoder_hidden_states=prompt.repeat(ensemble, 1, 1))
        return caught.pop().view(ensemble, images, -1, *config.image_token_grid).mean(0)

    with torch.inference_mode():
        features(pixels[:1], prompt[:1], *(value[::images] for value in noise))  # first calls allocate
        cut, found = seconds(lambda: features(pixels, prompt, *noise))
        whole, expected = seconds(usual)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    parameters = sum(value.numel() for value in features.parameters())
    usual_parameters = sum(value.numel() for model in (unet, vae) for value in model.parameters())
    yield Measurement("diffusion features, UNet cut off, against all of it for every noise", cut, whole)
    yield Measurement("diffusion features, parameters", parameters / 1e6, usual_parameters / 1e6, "million")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=positive_count, default=2)
    parser.add_argument("--ensemble", type=positive_count, default=4)
    print_table(measurements(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
