// about: a tree deeper than anybody keeps open, and well within its limit
// verdict: ok
// limits: {"workspace": "16M", "time": "60s"}
#include <sys/stat.h>
#include <unistd.h>
int main(void) {
  for (int i = 0; i < 1000; i++) if (mkdir("d", 0700) || chdir("d")) return 1;
  usleep(100000);
  return 0;
}
