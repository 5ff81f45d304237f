# Included by CMake at llama.cpp's project(): its C++ helper library is forced on by the Python package, which never
# loads it, and takes half of the compile time.
set(LLAMA_BUILD_COMMON OFF)
