#include "runtime/kernels/math.h"

#include <cmath>
#include <cstdint>

#include "runtime/kernels/lanes.h"

namespace portolan {
namespace {

// sin and cos of r in [-pi/4, pi/4] by their Taylor series.
double SinSeries(double r) {
  const double s = r * r;
  double sum = 0;
  for (int n = 19; n >= 3; n -= 2) sum = (1 + sum) * (-s / (n * (n - 1)));
  return r + r * sum;
}

double CosSeries(double r) {
  const double s = r * r;
  double sum = 0;
  for (int n = 20; n >= 2; n -= 2) sum = (1 + sum) * (-s / (n * (n - 1)));
  return 1 + sum;
}

struct Quadrant {
  int64_t index;  // of the nearest multiple of pi / 2
  double rest;
};

Quadrant Reduce(double x) {
  // pi / 2 in three parts of 33 bits, as in fdlibm's rem_pio2: products with
  // the index are exact.
  constexpr double kFirst = 1.57079632673412561417e+00;
  constexpr double kSecond = 6.07710050630396597660e-11;
  constexpr double kThird = 2.02226624871116645580e-21;
  const auto index =
      static_cast<int64_t>(std::floor(x * 0.63661977236758134308 + 0.5));
  const auto n = static_cast<double>(index);
  return {index, ((x - n * kFirst) - n * kSecond) - n * kThird};
}

}  // namespace

float Exp(float x) { return ExpVec(Splat(x))[0]; }

float Sigmoid(float x) { return SigmoidVec(Splat(x))[0]; }

float Silu(float x) { return SiluVec(Splat(x))[0]; }

double SinD(double x) {
  const Quadrant q = Reduce(x);
  const double value =
      (q.index & 1) == 0 ? SinSeries(q.rest) : CosSeries(q.rest);
  return (q.index & 2) == 0 ? value : -value;
}

double CosD(double x) {
  const Quadrant q = Reduce(x);
  const double value =
      (q.index & 1) == 0 ? CosSeries(q.rest) : SinSeries(q.rest);
  return ((q.index + 1) & 2) == 0 ? value : -value;
}

double ExpD(double x) {
  constexpr double kLn2High = 6.93147180369123816490e-01;
  constexpr double kLn2Low = 1.90821492927058770002e-10;
  const double n = std::floor(x * 1.44269504088896338700 + 0.5);
  const double r = (x - n * kLn2High) - n * kLn2Low;
  double sum = 0;
  for (int i = 16; i >= 1; --i) sum = (1 + sum) * (r / i);
  return std::ldexp(1 + sum, static_cast<int>(n));
}

double LogD(double x) {
  int exponent = 0;
  double m = std::frexp(x, &exponent);  // [0.5, 1)
  if (m < 0.70710678118654752440) {
    m *= 2;
    --exponent;
  }
  // ln m = 2 artanh((m - 1) / (m + 1)), |argument| < 0.172.
  const double t = (m - 1) / (m + 1);
  double sum = 0;
  for (int n = 25; n >= 1; n -= 2) sum = 1.0 / n + t * t * sum;
  return exponent * 6.93147180559945286227e-01 + 2 * t * sum;
}

}  // namespace portolan
