// about: pretends to have been killed
// verdict: failed 137
// limits: {"memory": "32M"}
int main(void) { return 137; }
