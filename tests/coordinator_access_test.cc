#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "cluster/coordinator/access.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kTokens[] =
    "# name role token\n"
    "ann client 0123456789abcdef\n"
    "\n"
    "  ranks worker\tfedcba9876543210  \n"
    "root admin aaaaaaaaaaaaaaaa\n";

AccessRules Rules(bool certificates = false) {
  return {.tokens = *AccessList::Parse("tokens", kTokens),
          .certificates = certificates};
}

Credentials Bearer(const std::string& token) {
  return {.authorization = "Bearer " + token, .address = "ipv4:10.0.0.1"};
}

TEST(AccessTest, ComparesWholeTexts) {
  EXPECT_TRUE(ConstantTimeEqual("abc", "abc"));
  EXPECT_TRUE(ConstantTimeEqual("", ""));
  for (const char* other : {"", "a", "ab", "abd", "xbc", "abcabc", "abca"}) {
    EXPECT_FALSE(ConstantTimeEqual(other, "abc")) << other;
    EXPECT_FALSE(ConstantTimeEqual("abc", other)) << other;
  }
}

TEST(AccessTest, ATokenTellsTheNameOfItsClient) {
  const auto ann =
      Admit(Rules(), ServiceKind::kInference, Bearer("0123456789abcdef"));
  ASSERT_TRUE(ann.ok());
  EXPECT_EQ(ann->name, "ann");
  EXPECT_FALSE(ann->sees_all);

  const auto root =
      Admit(Rules(), ServiceKind::kInference, Bearer("aaaaaaaaaaaaaaaa"));
  ASSERT_TRUE(root.ok());
  EXPECT_TRUE(root->sees_all);
}

TEST(AccessTest, NoTokenOrAWrongOneIsUnauthenticated) {
  for (const Credentials& credentials :
       {Credentials{.address = "a"}, Bearer(""), Bearer("0123456789abcdeX"),
        Bearer("0123456789abcdef "), Credentials{.authorization = "0123456789"},
        Credentials{.authorization = "bearer 0123456789abcdef"}}) {
    const auto identity = Admit(Rules(), ServiceKind::kInference, credentials);
    EXPECT_TRUE(absl::IsUnauthenticated(identity.status()))
        << credentials.authorization;
  }
}

TEST(AccessTest, ATokenOfAnotherRoleIsDenied) {
  EXPECT_TRUE(absl::IsPermissionDenied(
      Admit(Rules(), ServiceKind::kControl, Bearer("0123456789abcdef"))
          .status()));
  EXPECT_TRUE(absl::IsPermissionDenied(
      Admit(Rules(), ServiceKind::kInference, Bearer("fedcba9876543210"))
          .status()));
  EXPECT_TRUE(
      Admit(Rules(), ServiceKind::kControl, Bearer("fedcba9876543210")).ok());
}

TEST(AccessTest, ACertificateLetsRanksInAndNamesClients) {
  const Credentials rank{.subject = "CN=rank", .address = "a"};
  EXPECT_TRUE(Admit(Rules(true), ServiceKind::kControl, rank).ok());
  EXPECT_TRUE(absl::IsUnauthenticated(
      Admit(Rules(true), ServiceKind::kInference, rank).status()));

  const AccessRules certificates_only{.certificates = true};
  const auto client = Admit(certificates_only, ServiceKind::kInference, rank);
  ASSERT_TRUE(client.ok());
  EXPECT_EQ(client->name, "CN=rank");
  EXPECT_TRUE(absl::IsUnauthenticated(
      Admit(certificates_only, ServiceKind::kControl, {.address = "a"})
          .status()));
}

TEST(AccessTest, WhereCertificatesAreAllThatTellsCallersNobodyIsAnonymous) {
  const auto nobody = Admit({.certificates = true}, ServiceKind::kInference,
                            {.address = "ipv4:10.0.0.1"});
  ASSERT_TRUE(absl::IsUnauthenticated(nobody.status())) << nobody.status();
  EXPECT_THAT(std::string(nobody.status().message()),
              HasSubstr("--tls-client-ca"));
  EXPECT_THAT(std::string(nobody.status().message()),
              HasSubstr("--token-file"));
}

TEST(AccessTest, ASubjectCountsOnlyWhereCertificatesAreVerified) {
  const Credentials forged{.subject = "CN=rank", .address = "a"};
  EXPECT_TRUE(absl::IsUnauthenticated(
      Admit(Rules(false), ServiceKind::kControl, forged).status()));
}

TEST(AccessTest, WithoutRulesEverybodyIsKnownByAddress) {
  const auto identity = Admit({}, ServiceKind::kControl, {.address = "here"});
  ASSERT_TRUE(identity.ok());
  EXPECT_EQ(identity->name, "here");
}

TEST(AccessTest, AClientsCertificateIsNoRanksWhereSubjectsTellThemApart) {
  const AccessRules rules{.certificates = true, .worker_subject = "*CN=rank-*"};
  const Credentials ann{.subject = "O=lab,CN=ann", .address = "a"};
  const Credentials rank{.subject = "O=lab,CN=rank-3", .address = "a"};

  EXPECT_TRUE(absl::IsPermissionDenied(
      Admit(rules, ServiceKind::kControl, ann).status()));
  EXPECT_TRUE(Admit(rules, ServiceKind::kInference, ann).ok());
  EXPECT_TRUE(Admit(rules, ServiceKind::kControl, rank).ok());
}

TEST(AccessTest, ABadTokenFileIsNamedByLineAndKeepsItsSecret) {
  for (const char* text :
       {"ann client\n", "ann boss 0123456789abcdef\n", "ann client short\n",
        "ann client secretsecretsecret more\n", "", "# nothing\n"}) {
    const auto list = AccessList::Parse("FILE", text);
    ASSERT_TRUE(absl::IsInvalidArgument(list.status())) << text;
    const std::string message(list.status().message());
    EXPECT_THAT(message, HasSubstr("FILE"));
    EXPECT_THAT(message, Not(HasSubstr("secret")));
  }
}

TEST(AccessTest, KnowsWhichAddressesStayOnThisMachine) {
  for (const char* local :
       {"127.0.0.1:1", "127.1.2.3:80", "localhost:0", "[::1]:5", "unix:/x"}) {
    EXPECT_TRUE(IsLoopback(local)) << local;
  }
  for (const char* remote :
       {"0.0.0.0:1", "[::]:1", "10.0.0.1:1", "host:1",
        "localhost.example.org:1", "127.example.org:1", "*:1"}) {
    EXPECT_FALSE(IsLoopback(remote)) << remote;
  }
}

}  // namespace
}  // namespace portolan
