# Counts the lines of every file in in/, and leaves a file of its own for each in out/.
mkdir out
for file in in/*; do
    name=$(basename "$file" .txt)
    echo scratch > "out/$name.tmp"
    wc -l < "$file" > "out/$name.$ENDING"
    echo "counted $name"
done
echo "done" >&2
