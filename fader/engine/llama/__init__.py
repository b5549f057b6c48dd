"""The backbone on llama.cpp: GGUF files, and the speed of a laptop. Needs the extra `llama`."""
