#pragma once

namespace portolan {

// Functions of one float, the same bits as the vector kernels on every path.
// The arguments are finite or infinite; the thread flushes denormals.

// Within about 1 ulp of e^x. 0 below ln(FLT_MIN), infinity above ln(FLT_MAX).
float Exp(float x);

// 1 / (1 + e^-x).
float Sigmoid(float x);

// x * Sigmoid(x), as x / (1 + e^-x).
float Silu(float x);

// In double, from series of our own: libm's last bit depends on the processor.
// |x| < 2^20 for the angles, x > 0 for the logarithm. Errors below 1e-14
// relative to max(1, |result|).
double SinD(double x);
double CosD(double x);
double ExpD(double x);
double LogD(double x);

}  // namespace portolan
