// Checks histories of register operations for linearizability with porcupine: one JSON object a line, a file a history.
//
//	linearizable [-picture FILE] [-patience 60s] HISTORY...
//
// Exit code 0: every history is linearizable; 1: one is not (a picture of it is written); 2: one could not be decided or read.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

// What a client asked of one key and what it was told. A write of unknown outcome has no return: it may take effect at any later time, or never.
type operation struct {
	Client   int    `json:"client"`
	Key      string `json:"key"`
	Write    bool   `json:"write"`
	Value    string `json:"value"`
	CallNs   int64  `json:"call_ns"`
	ReturnNs *int64 `json:"return_ns"`
}

var register = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		for _, one := range history {
			key := one.Input.(operation).Key
			byKey[key] = append(byKey[key], one)
		}
		parts := make([][]porcupine.Operation, 0, len(byKey))
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		asked := input.(operation)
		if asked.Write {
			return true, asked.Value
		}
		return state.(string) == output.(string), state
	},
	DescribeOperation: func(input, output any) string {
		asked := input.(operation)
		if asked.Write {
			return fmt.Sprintf("%s := %s", asked.Key, asked.Value)
		}
		return fmt.Sprintf("%s = %s", asked.Key, output)
	},
}

func read(path string) ([]operation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var history []operation
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var one operation
		if err := json.Unmarshal(lines.Bytes(), &one); err != nil {
			return nil, fmt.Errorf("%s, line %d: %w", path, len(history)+1, err)
		}
		history = append(history, one)
	}
	return history, lines.Err()
}

// What has to be put into an order. A write of unknown outcome that no read has seen can always come after everything else, or never: it proves and
// disproves nothing, and dozens of them on one key would have the checker try all their orders. (Values are never written twice.) Nor does a read without
// an answer say anything.
func telling(history []operation) []porcupine.Operation {
	type written struct{ key, value string }
	seen := map[written]bool{}
	for _, one := range history {
		if !one.Write && one.ReturnNs != nil {
			seen[written{one.Key, one.Value}] = true
		}
	}
	var told []porcupine.Operation
	for _, one := range history {
		returned := int64(math.MaxInt64)
		if one.ReturnNs != nil {
			returned = *one.ReturnNs
		} else if !one.Write || !seen[written{one.Key, one.Value}] {
			continue
		}
		told = append(told, porcupine.Operation{ClientId: one.Client, Input: one, Call: one.CallNs, Output: one.Value, Return: returned})
	}
	return told
}

func main() {
	picture := flag.String("picture", "not-linearizable.html", "where the picture of a history that is not linearizable goes")
	patience := flag.Duration("patience", time.Minute, "how long one history may take")
	flag.Parse()
	code, operations := 0, 0
	for _, path := range flag.Args() {
		history, err := read(path)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		operations += len(history)
		switch result, info := porcupine.CheckOperationsVerbose(register, telling(history), *patience); result {
		case porcupine.Illegal:
			fmt.Printf("%s: NOT linearizable; picture in %s\n", path, *picture)
			if err := porcupine.VisualizePath(register, info, *picture); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			os.Exit(1)
		case porcupine.Unknown:
			fmt.Printf("%s: not decided within %s\n", path, *patience)
			code = 2
		}
	}
	if code == 0 {
		fmt.Printf("%d histories, %d operations: linearizable\n", flag.NArg(), operations)
	}
	os.Exit(code)
}
