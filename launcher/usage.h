#pragma once

namespace CLI {
class App;
class ParseError;
}  // namespace CLI

namespace portolan {

// Reports what CLI11 found wrong as one line "error: ...", or prints the help
// or version that was asked for; returns the exit code.
int ReportUsage(const CLI::App& app, const CLI::ParseError& error);

}  // namespace portolan
