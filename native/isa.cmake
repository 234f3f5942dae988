# penstock_instruction_sets(target): adds native/isa's files to `target`, each compiled for its own instruction
# set, and tells core/cpu.cpp, which chooses one at run time, what there is.
include(CheckCXXCompilerFlag)

# Contraction is off: a product and a sum become one operation only where the source says so.
set(PENSTOCK_KERNEL_OPTIMIZATION -O3 CACHE STRING "optimization of the kernels, whatever the build type")
set(PENSTOCK_ONLY "" CACHE STRING "the only instruction sets to build (portable among them), for quick builds")
set(kernel_flags ${PENSTOCK_KERNEL_OPTIMIZATION} -ffp-contract=off -fno-math-errno -Wno-uninitialized
    -Wno-maybe-uninitialized)

# GCC's order of instructions needs more registers than 16 or what NEON has: the source's order does not.
set(in_order "")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  set(in_order -fno-tree-ter -fno-schedule-insns)
endif()

function(penstock_isa target name)
  set(folder ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  if(PENSTOCK_ONLY AND NOT name IN_LIST PENSTOCK_ONLY)
    return()
  endif()
  string(TOUPPER ${name} upper)
  foreach(flag ${ARGN})
    string(MAKE_C_IDENTIFIER "PENSTOCK_HAS${flag}" has)
    check_cxx_compiler_flag(${flag} ${has})
    if(NOT ${has})
      message(STATUS "instruction set ${name} is left out: the compiler lacks ${flag}")
      return()
    endif()
  endforeach()
  target_sources(${target} PRIVATE ${folder}/isa/${name}.cpp)
  set_source_files_properties(${folder}/isa/${name}.cpp PROPERTIES COMPILE_OPTIONS "${kernel_flags};${ARGN}")
  set_property(SOURCE ${folder}/core/cpu.cpp APPEND PROPERTY COMPILE_DEFINITIONS PENSTOCK_WITH_${upper})
endfunction()

function(penstock_instruction_sets target)
  set(avx2 -mavx2 -mfma -mf16c)
  set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni ${avx2})
  penstock_isa(${target} portable ${in_order})
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
    penstock_isa(${target} avx2 ${avx2} ${in_order})
    penstock_isa(${target} avxvnni ${avx2} -mavxvnni)
    penstock_isa(${target} avx512 ${avx512})
    penstock_isa(${target} avx512_bf16 ${avx512} -mavx512bf16)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
    penstock_isa(${target} dotprod -march=armv8.2-a+dotprod ${in_order})
  endif()
endfunction()
