// NVIDIA's management library as far as it is used here, by the structures and numbers of nvml.h. See nvml.py.
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char uuid[96]; unsigned long long memory; int busy, mig, tells; char name[96]; } card;
typedef struct { unsigned long long total, free, used; } memory_info;
typedef struct { unsigned gpu, memory; } utilization;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_info;

static card cards[16];
static int number_of_cards, ready;

static int load(void) {
  int status = 999;
  FILE *state = fopen(STATE, "r");
  if (!state || fscanf(state, "%d", &status) != 1) return 999;
  for (number_of_cards = 0; number_of_cards < 16; number_of_cards++) {
    card *c = &cards[number_of_cards];
    if (fscanf(state, "%95s %llu %d %d %d %95[^\n]", c->uuid, &c->memory, &c->busy, &c->mig, &c->tells, c->name) != 6) break;
  }
  fclose(state);
  return status;
}

static int enter(void) { return ready ? load() : 1; }
int nvmlInit_v2(void) { int status = load(); ready = status == 0; return status; }
int nvmlShutdown(void) { ready = 0; return 0; }
const char *nvmlErrorString(int number) {
  return number == 3 ? "Not Supported" : number == 9 ? "Driver Not Loaded" : number == 15 ? "GPU is lost" : "Unknown Error";
}
int nvmlDeviceGetCount_v2(unsigned *count) { int status = enter(); *count = number_of_cards; return status; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, card **device) {
  if (index >= (unsigned)number_of_cards) return 2;
  *device = &cards[index];
  return 0;
}
int nvmlDeviceGetMinorNumber(card *device, unsigned *minor) { *minor = device - cards; return enter(); }
int nvmlDeviceGetUUID(card *device, char *text, unsigned size) { snprintf(text, size, "%s", device->uuid); return enter(); }
int nvmlDeviceGetName(card *device, char *text, unsigned size) { snprintf(text, size, "%s", device->name); return enter(); }
int nvmlDeviceGetMemoryInfo(card *device, memory_info *info) {
  *info = (memory_info){device->memory << 20, 0, 0};
  return enter();
}
int nvmlDeviceGetMigMode(card *device, unsigned *current, unsigned *pending) {
  if (device->mig < 0) return 3;
  *current = *pending = device->mig;
  return enter();
}
int nvmlDeviceGetUtilizationRates(card *device, utilization *rates) {
  int status = enter();
  *rates = (utilization){device->busy, 0};
  return device->busy < 0 ? 3 : status;
}
int nvmlDeviceGetGraphicsRunningProcesses_v2(card *device, unsigned *count, process_info *infos) {
  (void)device; (void)infos;
  *count = 0;
  return enter();
}
int nvmlDeviceGetComputeRunningProcesses_v2(card *device, unsigned *count, process_info *infos) {
  int status = enter();
  if (status) return status;
  if (!device->tells) return 3;
  unsigned room = *count;
  *count = 0;
  DIR *proc = opendir("/proc");
  for (struct dirent *entry; (entry = readdir(proc));) {
    char path[300], comm[32] = "";
    int index;
    unsigned long long mib;
    if (!isdigit(entry->d_name[0])) continue;
    snprintf(path, sizeof path, "/proc/%s/comm", entry->d_name);
    FILE *file = fopen(path, "r");
    if (!file) continue;
    if (fgets(comm, sizeof comm, file) && sscanf(comm, "gpu%d:%llu", &index, &mib) == 2 && index == device - cards) {
      if (*count < room)
        infos[*count] = (process_info){atoi(entry->d_name), device->tells == 1 ? ~0ULL : mib << 20, ~0u, ~0u};
      ++*count;
    }
    fclose(file);
  }
  closedir(proc);
  return *count > room ? 7 : 0;
}
