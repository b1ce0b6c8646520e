"""Form: names, layout, containers. Reads checkpoints, writes GGUF and safetensors losslessly."""
