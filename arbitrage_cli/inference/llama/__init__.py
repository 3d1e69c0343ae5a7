"""The only importer of llama.cpp's binding."""
