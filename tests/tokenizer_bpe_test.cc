#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "runtime/model/tokenizer/bpe.h"

namespace portolan {
namespace {

using nlohmann::json;

// Random merges over the letters a to d, and the pairs in order.
struct RandomModel {
  explicit RandomModel(uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<std::string> tokens = {"a", "b", "c", "d"};
    for (const std::string& token : tokens) {
      vocab[token] = static_cast<int32_t>(vocab.size());
    }
    while (merges.size() < 40) {
      const std::string left = tokens[random() % tokens.size()];
      const std::string right = tokens[random() % tokens.size()];
      if (left.size() + right.size() > 12) continue;
      if (vocab.try_emplace(left + right, static_cast<int32_t>(vocab.size()))
              .second) {
        tokens.push_back(left + right);
      }
      merges.emplace_back(left, right);
    }
  }

  std::unique_ptr<Bpe> Build() const {
    const json written = {{"vocab", vocab}, {"merges", merges}};
    const json model = json::parse(written.dump());
    const std::string file = "test";
    auto bpe = Bpe::FromJson(JsonField(model, file));
    EXPECT_TRUE(bpe.ok()) << bpe.status();
    return *std::move(bpe);
  }

  std::map<std::string, int32_t> vocab;
  std::vector<std::pair<std::string, std::string>> merges;
};

// The slow reference: looks for the pair of lowest rank from the start, again
// and again. Of a merge that is listed twice the last rank counts.
std::vector<int32_t> EncodeSlowly(const RandomModel& model,
                                  const std::string& word) {
  std::map<std::pair<std::string, std::string>, size_t> ranks;
  for (size_t i = 0; i < model.merges.size(); ++i) ranks[model.merges[i]] = i;
  std::vector<std::string> symbols;
  for (const char c : word) symbols.emplace_back(1, c);
  while (true) {
    size_t best = symbols.size();
    size_t best_rank = model.merges.size();
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const auto rank = ranks.find({symbols[i], symbols[i + 1]});
      if (rank != ranks.end() && rank->second < best_rank) {
        best = i;
        best_rank = rank->second;
      }
    }
    if (best == symbols.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
  }
  std::vector<int32_t> ids;
  for (const std::string& symbol : symbols)
    ids.push_back(model.vocab.at(symbol));
  return ids;
}

std::string RandomWord(std::mt19937& random, size_t max_length) {
  std::string word(1 + random() % max_length, 'a');
  for (char& c : word) c = static_cast<char>('a' + random() % 4);
  return word;
}

std::vector<int32_t> Encode(const Bpe& bpe, const std::string& word) {
  Bpe::Scratch scratch;
  std::vector<int32_t> ids;
  const absl::Status status = bpe.Encode(word, scratch, ids);
  EXPECT_TRUE(status.ok()) << status;
  return ids;
}

TEST(BpeTest, MergesAsTheSlowReferenceDoes) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const RandomModel model(seed);
    const std::unique_ptr<Bpe> bpe = model.Build();
    std::mt19937 random(seed);
    for (int i = 0; i < 100; ++i) {
      const std::string word = RandomWord(random, 90);

      EXPECT_EQ(Encode(*bpe, word), EncodeSlowly(model, word)) << word;
    }
  }
}

TEST(BpeTest, AWordFromTheCacheIsTheSame) {
  const RandomModel model(1);
  const std::unique_ptr<Bpe> bpe = model.Build();

  const std::vector<int32_t> first = Encode(*bpe, "abcdabcd");
  const std::vector<int32_t> second = Encode(*bpe, "abcdabcd");

  EXPECT_EQ(first, second);
}

// Quadratic work on two million letters would not end within a test's time.
TEST(BpeTest, EncodesAVeryLongWord) {
  const RandomModel model(2);
  const std::unique_ptr<Bpe> bpe = model.Build();
  std::mt19937 random(2);
  const std::string word(2'000'000, 'a');
  const std::string mixed = word + RandomWord(random, 1'000'000) + word;

  const std::vector<int32_t> ids = Encode(*bpe, mixed);

  std::string spelled;
  for (const int32_t id : ids) spelled += *bpe->vocabulary().Token(id);
  EXPECT_EQ(spelled, mixed);
}

TEST(BpeTest, ThreadsShareTheCache) {
  const RandomModel model(3);
  const std::unique_ptr<Bpe> bpe = model.Build();
  std::mt19937 random(3);
  std::vector<std::string> words;
  std::vector<std::vector<int32_t>> expected;
  for (int i = 0; i < 300; ++i) {
    words.push_back(RandomWord(random, 8));
    expected.push_back(EncodeSlowly(model, words.back()));
  }

  std::vector<std::vector<std::vector<int32_t>>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (const std::string& word : words) {
        result.push_back(Encode(*bpe, word));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();

  for (const auto& result : results) EXPECT_EQ(result, expected);
}

}  // namespace
}  // namespace portolan
