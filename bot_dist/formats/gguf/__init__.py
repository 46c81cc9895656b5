"""GGUF, the format of llama.cpp: its header, its tensors and its tokenizer, read and written."""
