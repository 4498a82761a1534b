#include "experts/replay_plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace portolan {
namespace {

constexpr double kPlotWidth = 380;
constexpr double kPlotHeight = 300;
constexpr double kTop = 60;
// Distinct on white and for the colour-blind (Okabe and Ito), grey for the
// rest.
constexpr std::array<const char*, 10> kColours = {
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00",
    "#56B4E9", "#8C564B", "#7F7F7F", "#BCBD22", "#000000"};

using Value = std::function<double(const ReplayRow&)>;

std::vector<std::string> Policies(std::span<const ReplayRow> rows) {
  std::vector<std::string> names;
  for (const ReplayRow& row : rows) {
    if (std::ranges::find(names, row.result.policy) == names.end()) {
      names.push_back(row.result.policy);
    }
  }
  return names;
}

// A round number not below `value`: 1, 2 or 5 times a power of ten.
double RoundUp(double value) {
  if (!(value > 0)) return 1;
  const double power = std::pow(10, std::floor(std::log10(value)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (value <= factor * power) return factor * power;
  }
  return 10 * power;
}

// One chart; x is the budget from 0 to 100 %.
class Chart {
 public:
  Chart(double left, double top_value, std::string_view label)
      : left_(left), top_value_(top_value), label_(label) {}

  std::string Axes() const {
    std::string svg = Text(left_ + kPlotWidth / 2, kTop - 12, "middle", label_);
    for (int i = 0; i <= 4; ++i) {
      const double y = Y(top_value_ * i / 4);
      absl::StrAppend(
          &svg,
          absl::StrFormat("<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' "
                          "stroke='#ddd'/>\n",
                          left_, y, left_ + kPlotWidth, y),
          Text(left_ - 6, y + 4, "end",
               absl::StrFormat("%g", top_value_ * i / 4)));
    }
    for (const double budget : {0.0, 0.25, 0.5, 0.75, 1.0}) {
      absl::StrAppend(&svg, Text(X(budget), kTop + kPlotHeight + 16, "middle",
                                 absl::StrFormat("%g %%", 100 * budget)));
    }
    return svg;
  }

  std::string Line(std::span<const ReplayRow> rows, const std::string& policy,
                   const char* colour, const Value& value) const {
    std::vector<std::pair<double, double>> points;
    for (const ReplayRow& row : rows) {
      if (row.result.policy == policy) {
        points.emplace_back(row.budget, value(row));
      }
    }
    std::ranges::sort(points);
    std::string path;
    std::string dots;
    for (const auto& [budget, height] : points) {
      absl::StrAppend(&path, path.empty() ? "M" : " L",
                      absl::StrFormat("%.1f %.1f", X(budget), Y(height)));
      absl::StrAppend(&dots, absl::StrFormat("<circle cx='%.1f' cy='%.1f' "
                                             "r='3' fill='%s'/>\n",
                                             X(budget), Y(height), colour));
    }
    return absl::StrCat(
        "<path d='", path, "' fill='none' stroke='", colour, "' stroke-width='",
        policy == "adaptive" ? "3" : "1.6", "'",
        policy == "oracle" ? " stroke-dasharray='6 4'" : "", "/>\n", dots);
  }

  static std::string Text(double x, double y, std::string_view anchor,
                          std::string_view text) {
    return absl::StrFormat(
        "<text x='%.1f' y='%.1f' text-anchor='%s'>%s</text>\n", x, y,
        std::string(anchor), Escape(text));
  }

 private:
  static std::string Escape(std::string_view text) {
    return absl::StrReplaceAll(absl::string_view(text.data(), text.size()),
                               {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}});
  }
  double X(double budget) const { return left_ + budget * kPlotWidth; }
  double Y(double value) const {
    return kTop + kPlotHeight * (1 - value / top_value_);
  }

  double left_;
  double top_value_;
  std::string label_;
};

double StallMillis(const ReplayRow& row) {
  const auto tokens =
      static_cast<double>(std::max<int64_t>(1, row.result.total.tokens));
  return absl::ToDoubleMilliseconds(row.result.total.stall) / tokens;
}

double HitPercent(const ReplayRow& row) {
  return 100 * row.result.total.HitRate();
}

}  // namespace

std::string PlotReplay(std::span<const ReplayRow> rows,
                       std::string_view title) {
  double most = 0;
  for (const ReplayRow& row : rows) most = std::max(most, StallMillis(row));
  const Chart stall(60, RoundUp(most), "stall, ms per token");
  const Chart hits(510, 100, "hit rate, %");
  std::string svg =
      "<svg xmlns='http://www.w3.org/2000/svg' width='1040' height='430' "
      "font-family='sans-serif' font-size='12'>\n"
      "<rect width='100%' height='100%' fill='white'/>\n";
  absl::StrAppend(&svg, Chart::Text(60, 22, "start", title), stall.Axes(),
                  hits.Axes(),
                  Chart::Text(475, kTop + kPlotHeight + 44, "middle",
                              "expert memory, share of all experts"));
  const std::vector<std::string> policies = Policies(rows);
  for (size_t i = 0; i < policies.size(); ++i) {
    const char* const colour = policies[i] == "oracle"
                                   ? kColours.back()
                                   : kColours[i % (kColours.size() - 1)];
    const double y = kTop + 14 + 20 * static_cast<double>(i);
    absl::StrAppend(
        &svg, stall.Line(rows, policies[i], colour, StallMillis),
        hits.Line(rows, policies[i], colour, HitPercent),
        absl::StrFormat("<line x1='915' y1='%.1f' x2='940' y2='%.1f' "
                        "stroke='%s' stroke-width='3'/>\n",
                        y - 4, y - 4, colour),
        Chart::Text(946, y, "start", policies[i]));
  }
  return absl::StrCat(svg, "</svg>\n");
}

}  // namespace portolan
