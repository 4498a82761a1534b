#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "experts/weight_conversion.h"
#include "runtime/base/fp16.h"

namespace portolan {
namespace {

using ::testing::ElementsAreArray;

// Halfway cases, denormals, infinities and both signs.
const float kValues[] = {0.0f,           -0.0f, 1.0f,     1.0f + 0x1p-8f,
                         1.0f + 0x3p-8f, -2.5f, 0x1p-20f, 65504.0f};

template <typename Stored>
std::vector<Bf16> Convert(TensorDtype dtype, const std::vector<Stored>& stored,
                          size_t misalignment) {
  std::vector<std::byte> bytes(misalignment + stored.size() * sizeof(Stored));
  std::memcpy(bytes.data() + misalignment, stored.data(),
              stored.size() * sizeof(Stored));
  std::vector<Bf16> converted(stored.size());
  ConvertToBf16(dtype, std::span(bytes).subspan(misalignment), converted);
  return converted;
}

TEST(WeightConversionTest, RoundsF32ToNearestEvenAtAnyAlignment) {
  const std::vector<float> stored(std::begin(kValues), std::end(kValues));
  std::vector<Bf16> wanted;
  for (float value : stored) wanted.push_back(ToBf16(value));

  EXPECT_THAT(Convert(TensorDtype::kF32, stored, 0), ElementsAreArray(wanted));
  EXPECT_THAT(Convert(TensorDtype::kF32, stored, 3), ElementsAreArray(wanted));
}

TEST(WeightConversionTest, RoundsF16OnceFromItsExactValue) {
  std::vector<Fp16> stored;
  std::vector<Bf16> wanted;
  for (float value : kValues) {
    stored.push_back(ToFp16(value));
    wanted.push_back(ToBf16(ToFloat(stored.back())));
  }

  EXPECT_THAT(Convert(TensorDtype::kF16, stored, 1), ElementsAreArray(wanted));
}

TEST(WeightConversionTest, CopiesBf16) {
  const std::vector<Bf16> stored = {{0x3f80}, {0x7fc1}, {0x0001}, {0xffff}};

  EXPECT_THAT(Convert(TensorDtype::kBf16, stored, 1), ElementsAreArray(stored));
}

TEST(WeightConversionTest, WorksInPlace) {
  std::vector<float> stored(std::begin(kValues), std::end(kValues));
  const std::vector<Bf16> wanted = Convert(TensorDtype::kF32, stored, 0);
  std::vector<std::byte> bytes(stored.size() * sizeof(float));
  std::memcpy(bytes.data(), stored.data(), bytes.size());
  const std::span<Bf16> to(reinterpret_cast<Bf16*>(bytes.data()),
                           stored.size());

  ConvertToBf16(TensorDtype::kF32, bytes, to);

  EXPECT_THAT(to, ElementsAreArray(wanted));
}

}  // namespace
}  // namespace portolan
