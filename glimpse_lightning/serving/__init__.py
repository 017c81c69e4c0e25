"""An OpenAI-compatible server of a pruned model, on transformers' own serving stack."""
