// about: large programs that were unlinked, and run on where no file of theirs is open or mapped any more
// verdict: limit workspace
// limits: {"workspace": "8M", "time": "60s"}
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
static char block[1 << 20];
#if defined(__x86_64__) /* munmap, then pause for ever */
static const unsigned char rest[] = {0x0f, 0x05, 0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7};
static void unmap(unsigned long from, unsigned long to) {
  void *page = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(page, rest, sizeof rest);
  __asm__ volatile("jmp *%3" ::"a"(11L), "D"(from), "S"(to - from), "r"(page) : "rcx", "r11", "memory");
}
#else
static void unmap(unsigned long from, unsigned long to) {}
#endif
int main(int count, char **words) {
  if (count > 1) {
    unsigned long from = 0, to = 0, start, end;
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps))
      if (strstr(line, "(deleted)") && sscanf(line, "%lx-%lx", &start, &end) == 2) from = from ? from : start, to = end;
    fclose(maps);
    unmap(from, to);
    for (;;) pause();
  }
  for (char name[] = "a"; name[0] < 'e'; name[0]++) {
    int source = open("/proc/self/exe", O_RDONLY), sink = open(name, O_CREAT | O_WRONLY, 0700);
    for (ssize_t got; (got = read(source, block, sizeof block)) > 0;) write(sink, block, got);
    for (int i = 0; i < 4; i++) write(sink, block, sizeof block);
    close(source), close(sink);
    if (fork() == 0) {
      char path[64];
      sprintf(path, "/proc/self/fd/%d", open(name, O_PATH | O_CLOEXEC));
      unlink(name);
      execl(path, name, "again", (char *)0);
      return 1;
    }
    usleep(200000);
  }
  for (;;) pause();
}
