"""Pictures and prompts in, arrays of fixed shapes out; never imports a model's parameters."""
