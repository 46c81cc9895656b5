"""Continued pretraining by DeepSpeed ZeRO inside Ray Train workers.

Nothing heavy is imported here; start at ``bot_dist.train.driver.pretrain``.
"""
