# Builds for 64-bit ARM (Raspberry Pi 3, 4, 5, Zero 2 W) on another machine, with Debian's cross compiler.
#
#   apt install g++-aarch64-linux-gnu qemu-user
#   cmake -S . -B build/arm -DCMAKE_TOOLCHAIN_FILE=bnncore/native/cmake/aarch64-linux-gnu.cmake -DBITFLEET_TESTS=ON
#
# Code is compiled for plain ARMv8.0, which is what a Cortex-A53 runs; what needs more is chosen at run time.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)

set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_CXX_FLAGS_INIT "-march=armv8-a")

# The headers and libraries of the target, the programs of this machine.
set(CMAKE_FIND_ROOT_PATH /usr/aarch64-linux-gnu)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)

# Lets ctest, and anything else that CMake starts, run what was built.
set(BITFLEET_ARM_CPU cortex-a53 CACHE STRING "Processor that the emulator stands for")
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -cpu ${BITFLEET_ARM_CPU} -L /usr/aarch64-linux-gnu)
