"""DiffLMM's diffusion features: the UNet cut off after its block and each image encoded once, against the usual way.

The usual way, which is the original's, encodes every image once per noise and runs all four up blocks of the UNet.

python -m benchmarks.diffusion_features [--images 2] [--ensemble 4]
"""

import argparse

import torch

from benchmarks.midsize import seconds
from reasonseg.modeling.configuration_difflmm import DiffLmmConfig
from reasonseg.modeling.modeling_difflmm import DiffusionFeatures, diffusers_classes, draw_noise


UNET = {"block_out_channels": [64, 128, 256, 256], "cross_attention_dim": 128, "attention_head_dim": 4}
VAE = {"block_out_channels": [32, 64, 128, 128], "layers_per_block": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--ensemble", type=int, default=4)
    arguments = parser.parse_args()
    config = DiffLmmConfig(unet_config=UNET, vae_config=VAE, ensemble_size=arguments.ensemble)
    torch.manual_seed(0)
    unet_class, vae_class, _ = diffusers_classes()
    unet, vae = unet_class.from_config(config.unet_config).eval(), vae_class.from_config(config.vae_config).eval()
    features = DiffusionFeatures(config).eval()
    features.unet.load_state_dict(unet.state_dict(), strict=False)
    features.vae.load_state_dict(vae.state_dict(), strict=False)
    images = torch.randn(arguments.images, 3, config.image_size, config.image_size)
    prompt = torch.randn(arguments.images, config.image_seq_length, UNET["cross_attention_dim"])
    noise = draw_noise(config, arguments.images)
    caught = []
    unet.up_blocks[config.diffusion_block].register_forward_hook(lambda module, inputs, output: caught.append(output))

    def usual() -> torch.Tensor:
        distribution = vae.encode(images.repeat(arguments.ensemble, 1, 1, 1)).latent_dist
        latents = (distribution.mean + distribution.std * noise[0]) * vae.config.scaling_factor
        noisy = features.add_noise(latents, noise[1]).contiguous()
        unet(noisy, config.timestep, encoder_hidden_states=prompt.repeat(arguments.ensemble, 1, 1))
        return caught.pop().view(arguments.ensemble, arguments.images, -1, *config.image_token_grid).mean(0)

    with torch.inference_mode():
        features(images[:1], prompt[:1], *(value[:: arguments.images] for value in noise))  # first calls allocate
        cut, found = seconds(lambda: features(images, prompt, *noise))
        whole, expected = seconds(usual)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    parameters = sum(value.numel() for value in features.parameters())
    usual_parameters = sum(value.numel() for model in (unet, vae) for value in model.parameters())
    print(f"whole UNet, every noise encoded  {whole:8.2f} s  {usual_parameters / 1e6:6.1f} M parameters")
    print(f"cut UNet, every image encoded    {cut:8.2f} s  {parameters / 1e6:6.1f} M parameters")
    print(f"ratio                            {whole / cut:8.1f} x")


if __name__ == "__main__":
    main()
