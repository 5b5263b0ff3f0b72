// Runs the example: the body on standard input, the header as argument if there is one.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"receiver/dealix"
)

func main() {
	signature := ""
	if len(os.Args) > 1 {
		signature = os.Args[1]
	}
	body, err := io.ReadAll(os.Stdin)
	if err != nil {
		panic(err)
	}
	if err := dealix.Verify(body, signature, os.Getenv("DEALIX_WEBHOOK_SECRET")); err != nil {
		fmt.Fprintln(os.Stderr, "refused:", err)
		os.Exit(1)
	}
	var event struct{ ID string }
	if err := json.Unmarshal(body, &event); err != nil {
		panic(err)
	}
	fmt.Println("accepted", event.ID)
}
