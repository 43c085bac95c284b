"""Base models and what is added to them: loading, architectures, tokenizers, adapters."""
