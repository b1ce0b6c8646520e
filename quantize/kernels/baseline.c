/* Four lanes: SSE2, which every x86-64 has. */
#define LANES 4
#define NAME BASELINE
#define NAME_TEXT "baseline"
#include "build.h"
