// about: a tree so deep that no path reaches its end
// verdict: ok
// collect: **
// limits: {"time": "60s"}
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
  for (int i = 0; i < 3000; i++) if (mkdir("deeper", 0700) || chdir("deeper")) return 1;
  return 0;
}
