"""DeiT: ViT with a token for distillation."""

from bot_dist.model.families.vit import family

FAMILY = family("deit", "zeros")
