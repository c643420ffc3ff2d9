// about: a rule of Landlock would hold an unlinked file on the disk that no process has open; there are no such rules
// verdict: failed 1
// limits: {"workspace": "8M", "time": "60s"}
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>
static char block[1 << 20];
int main(void) {
  uint64_t handled = 4; /* reading files */
  int rules = syscall(444, &handled, sizeof handled, 0);
  if (rules < 0) return 1;
  for (char name[] = "a"; name[0] < 'e'; name[0]++) {
    struct __attribute__((packed)) { uint64_t allowed; int32_t file; } rule = {handled, open(name, O_CREAT | O_RDWR, 0600)};
    for (int i = 0; i < 4; i++) write(rule.file, block, sizeof block);
    if (syscall(445, rules, 1, &rule, 0)) return 2;
    unlink(name), close(rule.file);
  }
  sleep(2);
}
