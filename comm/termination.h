#pragma once

namespace portolan {

// Counts SIGTERM from now on instead of dying of it: mpirun sends it to the
// survivors of a lost rank, which must still name that rank, and a service
// drains. The program looks at TerminationCount() at its step borders.
void CatchTermination();

// How many SIGTERMs came since CatchTermination(). Thread-safe.
int TerminationCount();

}  // namespace portolan
