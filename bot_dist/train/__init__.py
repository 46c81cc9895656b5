"""Continued pretraining by DeepSpeed ZeRO-3 inside Ray Train workers.

Nothing heavy is imported here; start at ``bot_dist.train.driver.pretrain``.
"""
