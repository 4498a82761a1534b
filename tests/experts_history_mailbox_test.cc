#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "experts/history_mailbox.h"
#include "gtest/gtest.h"

namespace portolan {
namespace {

HistoryRow Row(std::string text,
               HistoryFormat format = HistoryFormat::kSequence) {
  return {.format = format, .key = "key", .map = std::move(text)};
}

TEST(HistoryMailboxTest, RowsLeaveInOrderAndByFormat) {
  HistoryMailbox mailbox({});
  mailbox.Send(Row("a"));
  mailbox.Send(Row("b"));
  mailbox.Send(Row("c", HistoryFormat::kIteration));

  const auto first = mailbox.TakeOutgoing(absl::ZeroDuration(), 1 << 20);
  const auto second = mailbox.TakeOutgoing(absl::ZeroDuration(), 1 << 20);

  ASSERT_EQ(first.rows.size(), 2u);
  EXPECT_EQ(first.rows[1].map, "b");
  ASSERT_EQ(second.rows.size(), 1u);
  EXPECT_EQ(second.rows[0].format, HistoryFormat::kIteration);
}

TEST(HistoryMailboxTest, AFullOutboxDropsItsOldestAndSaysSoOnce) {
  HistoryMailbox mailbox({.max_outgoing_bytes = 8});  // two rows of four bytes
  mailbox.Send(Row("a"));
  mailbox.Send(Row("b"));
  mailbox.Send(Row("c"));

  const auto out = mailbox.TakeOutgoing(absl::ZeroDuration(), 1 << 20);

  ASSERT_EQ(out.rows.size(), 2u);
  EXPECT_EQ(out.rows[0].map, "b");
  EXPECT_EQ(out.dropped, 1u);
  EXPECT_EQ(mailbox.counts().dropped, 1u);
  mailbox.Send(Row("d"));
  EXPECT_EQ(mailbox.TakeOutgoing(absl::ZeroDuration(), 64).dropped, 0u);
}

TEST(HistoryMailboxTest, WhatWasOfUseLeavesWithTheRowsOfItsFormat) {
  HistoryMailbox mailbox({});
  const std::vector<uint64_t> ids = {5, 5, 9};
  mailbox.SendUseful(HistoryFormat::kSequence, ids);
  EXPECT_TRUE(
      mailbox.TakeOutgoing(absl::ZeroDuration(), 1 << 20).useful.empty());

  mailbox.Send(Row("a", HistoryFormat::kIteration));
  mailbox.Send(Row("b"));

  EXPECT_TRUE(
      mailbox.TakeOutgoing(absl::ZeroDuration(), 1 << 20).useful.empty());
  EXPECT_EQ(mailbox.TakeOutgoing(absl::ZeroDuration(), 1 << 20).useful, ids);
  mailbox.Send(Row("c"));
  EXPECT_TRUE(
      mailbox.TakeOutgoing(absl::ZeroDuration(), 1 << 20).useful.empty());
}

TEST(HistoryMailboxTest, WhatWasOfUseIsBounded) {
  HistoryMailbox mailbox({});
  const std::vector<uint64_t> ids(3000, 5);
  for (int i = 0; i < 3; ++i) mailbox.SendUseful(HistoryFormat::kSequence, ids);
  mailbox.Send(Row("a"));

  EXPECT_EQ(mailbox.TakeOutgoing(absl::ZeroDuration(), 1 << 20).useful.size(),
            HistoryMailbox::kMaxUseful);
}

TEST(HistoryMailboxTest, ABatchIsBoundedButNeverEmpty) {
  HistoryMailbox mailbox({});
  mailbox.Send(Row("a long row"));
  mailbox.Send(Row("another long row"));

  EXPECT_EQ(mailbox.TakeOutgoing(absl::ZeroDuration(), 1).rows.size(), 1u);
}

TEST(HistoryMailboxTest, ItsOwnRowsDoNotComeBack) {
  HistoryMailbox mailbox({});
  mailbox.Send(Row("mine"));

  mailbox.Deliver(Row("mine"));
  mailbox.Deliver(Row("theirs"));

  const auto incoming = mailbox.TakeIncoming(10);
  ASSERT_EQ(incoming.size(), 1u);
  EXPECT_EQ(incoming[0].map, "theirs");
}

TEST(HistoryMailboxTest, AFullInboxKeepsTheNewest) {
  HistoryMailbox mailbox({.max_incoming_bytes = 8});
  for (int i = 0; i < 5; ++i) mailbox.Deliver(Row(absl::StrCat(i)));

  const auto incoming = mailbox.TakeIncoming(10);

  ASSERT_EQ(incoming.size(), 2u);
  EXPECT_EQ(incoming[0].map, "3");
}

TEST(HistoryMailboxTest, ClosingWakesWhoWaits) {
  HistoryMailbox mailbox({});
  bool synced = true;
  std::thread waiting(
      [&] { synced = mailbox.WaitUntilSynced(absl::InfiniteDuration()); });

  mailbox.Close();
  waiting.join();

  EXPECT_FALSE(synced);
  EXPECT_TRUE(
      mailbox.TakeOutgoing(absl::InfiniteDuration(), 1 << 20).rows.empty());
}

TEST(HistoryMailboxTest, RowsPassBetweenTwoThreads) {
  constexpr int kRows = 2000;
  HistoryMailbox mailbox({});
  std::thread sender([&] {
    for (int i = 0; i < kRows; ++i) mailbox.Send(Row(absl::StrCat(i)));
  });

  int received = 0;
  while (received < kRows) {
    for (const HistoryRow& row :
         mailbox.TakeOutgoing(absl::InfiniteDuration(), 256).rows) {
      EXPECT_EQ(row.map, absl::StrCat(received++));
    }
  }
  sender.join();
}

}  // namespace
}  // namespace portolan
