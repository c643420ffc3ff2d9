// about: a hole of a terabyte
// verdict: limit workspace
// collect: **
// limits: {"workspace": "16M", "time": "60s"}
#include <fcntl.h>
#include <unistd.h>
int main(void) { return ftruncate(open("hole", O_CREAT | O_WRONLY, 0600), 1L << 40) ? 0 : 0; }
