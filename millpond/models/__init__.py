"""What is known of a model without torch: presets, sizes, memory plan, tokenizer, prompts."""
