"""EDG on DynamiCrafter's latent video UNet (Tian et al., CVPR 2025)."""
