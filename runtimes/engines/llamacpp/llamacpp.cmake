# Included by CMake at llama.cpp's project(): its C++ helper library is forced on by the Python package, which never
# loads it, and takes half of the compile time.
set(LLAMA_BUILD_COMMON OFF)

# What it converts checkpoints with, of the very version of the library: optimize/toolchains/gguf runs it.
install(DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/conversion ${CMAKE_CURRENT_SOURCE_DIR}/gguf-py/gguf
        DESTINATION ${SKBUILD_PLATLIB_DIR}/llama_cpp/converter FILES_MATCHING PATTERN "*.py")
