"""The base model and what is put on it: opening, architectures, tokenizers, adapters."""
