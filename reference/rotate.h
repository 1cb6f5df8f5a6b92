// The rotation of a head in float64.
#pragma once

namespace kvrazor::reference {

/// x <- H x, H the Sylvester Hadamard matrix of order head_dim (a power of two) over sqrt(head_dim). Its own inverse.
void RotateHead(double* x, int head_dim);

}  // namespace kvrazor::reference
