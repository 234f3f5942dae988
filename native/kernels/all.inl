// Every kernel family, and the table of them: what an instruction set's file includes in its namespace.
#include "kernels/exp.inl"
#include "kernels/norm.inl"
#include "kernels/linear.inl"
#include "kernels/rotate.inl"
#include "kernels/attention.inl"
#include "kernels/experts.inl"
#include "kernels/sample.inl"
#include "kernels/table.inl"
