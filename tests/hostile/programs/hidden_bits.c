// about: calls that say one thing to a filter and another to the kernel; each one that passes is a bit in the exit code
// verdict: ok
// limits: {"time": "20s"}
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
  long high = 1L << 32;
  int passed = 0;
  if (syscall(SYS_socket, high | 40, 1, 0) >= 0) passed |= 1;
  if (syscall(SYS_personality, high | 0x0400000) >= 0) passed |= 2;
  if (syscall(SYS_clone, high | 0x10000011, 0, 0, 0, 0) >= 0) passed |= 4;
#ifdef __x86_64__
  unsigned *words = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  words[0] = 40, words[1] = 1;
  long made;
  __asm__ volatile("int $0x80" : "=a"(made) : "a"(102), "b"(1), "c"(words) : "memory");
  if (made >= 0) passed |= 8;
  if (syscall(0x40000000 | 165, 0, 0, 0, 0, 0) >= 0) passed |= 16;
#endif
  return passed;
}
